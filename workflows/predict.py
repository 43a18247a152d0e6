"""samkd predict: any model through the pipeline of the device."""

from pathlib import Path

from ..deploy.runtime.predict import PredictOptions
from ..deploy.runtime.predict import predict as predict_with
from .models import load_model


def predict(
    model: str | Path,
    options: PredictOptions,
    *,
    pretrained_path: str | Path | None = None,
    trust: str | Path | None = None,
    threads: int | None = None,
    cache: Path | None = None,
) -> int:
    """Segment scans with a package or a run and return the exit code; what is printed is what runtime.pyz prints.

    `pretrained_path` is the published file that a run adapts, where it has moved; `trust` the public key (PEM) whose
    owner must have signed a package; `cache` a folder in which a package's compiled graphs are kept. Raises what
    deploy.runtime.predict.predict and models.load_model raise.
    """
    return predict_with(
        options, lambda: load_model(model, pretrained_path=pretrained_path, trust=trust, threads=threads, cache=cache)
    )
