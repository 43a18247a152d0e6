"""Scalars in an MLflow run: a server of the user's, or a local folder or database. Nothing else is sent."""

import math
import os
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from ..errors import BadInputError, MissingExtraError, UsageError, translated
from ..volumes.json_files import read_json
from .progress import console
from .run import Run

RECORD = "mlflow.json"  # in the run folder: which MLflow run is its
EXPERIMENT = "samkd"
_COUNTED = "train/loss"  # the scalar that every step has


def check_installed() -> None:
    """Raises MissingExtraError without MLflow."""
    _library()


def _library() -> Any:
    with translated("--mlflow", "needs a library that is not here; pip install 'samkd[mlflow]'", MissingExtraError):
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # a server that is away must not hold up training
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        return import_module("mlflow")


class MLflowRun:
    """The MLflow run of a run folder, made once and found again by mlflow.json.

    Steps that it has are not written again. When it cannot be reached during training that is said once, and the next
    start of the same command writes from the log what it lacks. Raises UsageError when it cannot be reached at first.
    """

    def __init__(self, run: Run, uri: str) -> None:
        self._mlflow, self._uri = _library(), _with_scheme(uri)
        self._broken = False
        if self._uri.startswith("file:"):
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # which MLflow would rather have as a database
        with translated(f"--mlflow {uri}", "cannot be used", UsageError):
            self._client = self._mlflow.MlflowClient(tracking_uri=self._uri)
            self._id = self._recorded(run) or self._create(run)
            history = self._client.get_metric_history(self._id, _COUNTED)
        self._last = max((metric.step for metric in history), default=0)

    def _recorded(self, run: Run) -> str | None:
        """The MLflow run that the run folder knows of at this URI."""
        path = run.path / RECORD
        if not path.exists():
            return None
        record = read_json(path)
        if not isinstance(record, dict) or not all(isinstance(record.get(key), str) for key in ("uri", "run_id")):
            raise BadInputError(f"{path}: does not name an MLflow run; remove it, and a new one is made")
        return record["run_id"] if record["uri"] == self._uri else None

    def _create(self, run: Run) -> str:
        experiment = self._client.get_experiment_by_name(EXPERIMENT)
        number = experiment.experiment_id if experiment else self._client.create_experiment(EXPERIMENT)
        tags = {"stage": run.stage, "network": run.config.network.name, "config": str(run.config.user_config["name"])}
        created = self._client.create_run(number, run_name=run.path.name, tags=tags).info.run_id
        run.write_json(RECORD, {"uri": self._uri, "run_id": created})
        return created

    def write(self, step: int, scalars: Mapping[str, float], *, moment: float) -> None:
        if self._broken or step <= self._last:
            return
        metrics = [
            self._mlflow.entities.Metric(name, value, int(1000 * moment), step)
            for name, value in scalars.items()
            if math.isfinite(value)
        ]
        self._try(lambda: self._client.log_batch(self._id, metrics=metrics))

    def close(self) -> None:
        if not self._broken:
            self._try(lambda: self._client.set_terminated(self._id))

    def _try(self, send: Callable[[], object]) -> None:
        try:
            send()
        except Exception as error:  # of any kind: nothing of it is worth the end of a training
            self._broken = True
            console.print(
                f"{self._uri}: does not take figures any more ({type(error).__name__}: {error}); training goes on, and "
                "the next start of this command writes what is missing",
                markup=False,
            )


def _with_scheme(uri: str) -> str:
    """A plain path is a folder, made absolute: a resumed run may start elsewhere."""
    if "://" in uri or uri.startswith("file:"):
        return uri
    return Path(uri).resolve().as_uri()
