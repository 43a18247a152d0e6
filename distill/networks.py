"""A finished run as a torch network: any of them may teach, predict or be packed."""

from pathlib import Path

import torch

from ..errors import BadInputError, IntegrityError
from ..students import build_student
from ..teachers import build_teacher
from ..training.checkpoint import load_weights, sha256
from ..training.run import Run


def load_network(run: Run, *, base: Path | None = None) -> torch.nn.Module:
    """The network of a run with its best weights, in evaluation mode.

    A teacher that adapts published weights is put together again: `base` is their file (default: where it lay when
    the teacher was trained). Raises BadInputError when the run has no weights yet or the base is gone,
    IntegrityError when the weights are broken or the base is another file.
    """
    if not run.weights.exists():
        raise BadInputError(f"{run.path}: no weights yet; finish this run first")
    spec = dict(run.config["network"])
    room, options = spec.pop("room"), spec.pop("options", {})
    spec["patch"] = tuple(spec["patch"])
    if room == "students":
        network = build_student(**spec, **options)
    else:
        network = build_teacher(**spec, **options)
        if wanted := run.config["objective"]["pretrained"]:
            path = base or Path(run.config["base"])
            if not path.is_file():
                raise BadInputError(
                    f"{path}: {run.path} adapts this file ({wanted['name']}); say where it is: --weights"
                )
            if sha256(path) != wanted["sha256"]:
                raise IntegrityError(
                    f"{path}: not the weights that {run.path} adapts ({wanted['name']}, sha256 {wanted['sha256']}); "
                    "give that very file with --weights"
                )
            network.load_base(path)
            network.freeze_base()
    load_weights(network, run.weights)
    return network.eval()
