"""Scalars for TensorBoard and MLflow: made from the log, each step once, however often a run was stopped."""

import itertools
import json
import signal
import struct
import sys
from collections import defaultdict
from importlib import import_module
from pathlib import Path

import pytest
from helpers.tiny_training import cross_entropy, train

from samkd.configs.schema import Training
from samkd.errors import BadInputError, MissingExtraError
from samkd.training import mlflow_run, tensorboard
from samkd.training.interrupt import Stopped
from samkd.training.scalars import Destinations, scalars_of, shown_in

SETTINGS = Training(steps=6, validate_every=3)
SCORES = {"mean": 0.5, "liver (left)": 0.25}


def test_a_logs_entry_as_scalars():
    entry = {"step": 3, "learning_rate": 0.1, "loss": 2.0, "iou": 1, "dice": 0.5, "dice_per_class": SCORES}
    assert scalars_of(entry | {"seconds": 9.0, "waiting": 0.25, "patches_per_second": 4.0}) == {
        "train/loss": 2.0,
        "train/iou": 1.0,
        "train/learning_rate": 0.1,
        "validation/mean": 0.5,
        "validation/liver__left_": 0.25,
        "speed/waiting": 0.25,
        "speed/patches_per_second": 4.0,
    }


def train_with_a_stop(folder: Path, destinations: Destinations) -> list[dict]:
    """Stopped in the second step, then gone on with after a later start that was killed; the log's entries."""
    batches = itertools.count()

    def interrupted(logits, batch):
        if next(batches) == 1:
            signal.raise_signal(signal.SIGTERM)
        return cross_entropy(logits, batch)

    with shown_in(destinations):
        with pytest.raises(Stopped):
            train(folder, SETTINGS, interrupted, validate=lambda _: SCORES)
        with (folder / "log.jsonl").open("a") as stream:  # what a kill after two more steps leaves
            stream.writelines(json.dumps({"step": step, "loss": 9.0}) + "\n" for step in (3, 4))
        train(folder, SETTINGS, validate=lambda _: SCORES)
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def expected(log: list[dict]) -> dict[str, list[tuple[int, float]]]:
    values = defaultdict(list)
    for entry in log:
        for name, value in scalars_of(entry).items():
            values[name].append((entry["step"], pytest.approx(value)))
    return dict(values)


def test_tensorboard_has_every_step_once(tmp_path):
    pytest.importorskip("tensorboardX", reason="the environment was made before tensorboardX was a dependency")
    log = train_with_a_stop(tmp_path / "run", Destinations(tensorboard=True))
    assert [entry["step"] for entry in log] == [1, 2, 3, 4, 5, 6]
    assert {"train/loss", "validation/liver__left_", "speed/memory_bytes"} <= scalars_of(log[-1]).keys()
    assert events(tmp_path / "run" / "tensorboard") == expected(log)


def events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The scalars in the event files of a folder, in the order in which they lie there."""
    Event = import_module("tensorboardX.proto.event_pb2").Event

    values = defaultdict(list)
    for path in folder.iterdir():
        content, at = path.read_bytes(), 0
        while at < len(content):
            (length,) = struct.unpack_from("<Q", content, at)
            event = Event.FromString(content[at + 12 : at + 12 + length])
            at += 16 + length
            for value in event.summary.value:
                values[value.tag].append((event.step, value.simple_value))
    return dict(values)


def test_tensorboards_folder_is_no_link(tmp_path):
    pytest.importorskip("tensorboardX", reason="the environment was made before tensorboardX was a dependency")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter").write_text("dear")
    train(tmp_path / "run", SETTINGS.model_copy(update={"steps": 1}))
    (tmp_path / "run" / "tensorboard").symlink_to(tmp_path / "mine")
    with shown_in(Destinations(tensorboard=True)), pytest.raises(BadInputError, match="is a link"):
        train(tmp_path / "run", SETTINGS.model_copy(update={"steps": 1}))
    assert (tmp_path / "mine" / "letter").exists()


@pytest.mark.slow
def test_mlflow_has_every_step_once(tmp_path):
    """Also those that its server did not take while it was away, and a run of another server is made anew."""
    mlflow = pytest.importorskip("mlflow", reason="samkd[mlflow] is not installed")
    log = train_with_a_stop(tmp_path / "run", Destinations(mlflow=str(tmp_path / "ml")))
    record = json.loads((tmp_path / "run" / "mlflow.json").read_text())
    client = mlflow.MlflowClient(tracking_uri=record["uri"])
    assert client.get_run(record["run_id"]).info.status == "FINISHED"
    for name, values in expected(log).items():
        history = client.get_metric_history(record["run_id"], name)
        assert sorted((metric.step, metric.value) for metric in history) == values
    with shown_in(Destinations(mlflow=str(tmp_path / "other"))):
        train(tmp_path / "run", SETTINGS)
    other = json.loads((tmp_path / "run" / "mlflow.json").read_text())
    assert other["run_id"] != record["run_id"]
    client = mlflow.MlflowClient(tracking_uri=other["uri"])
    assert len(client.get_metric_history(other["run_id"], "train/loss")) == 6


@pytest.mark.parametrize(
    ("destinations", "module", "command"),
    [
        (Destinations(tensorboard=True), "tensorboardX", "pip install tensorboardX"),
        (Destinations(mlflow="runs"), "mlflow", r"pip install 'samkd\[mlflow\]'"),
    ],
)
def test_a_library_that_is_missing_is_named_before_anything_is_done(monkeypatch, destinations, module, command):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=command) as caught, shown_in(destinations):
        pass
    assert caught.value.exit_code == 5


def test_nothing_is_written_unless_it_is_asked_for(tmp_path):
    train(tmp_path / "run", SETTINGS)
    assert not (tmp_path / "run" / tensorboard.FOLDER).exists() and not (tmp_path / "run" / mlflow_run.RECORD).exists()
