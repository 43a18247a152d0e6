"""A finished run as a torch network: any of them may teach, predict or be packed."""

import torch

from ..errors import BadInputError
from ..students import build_student
from ..teachers import build_teacher
from ..training.checkpoint import load_weights
from ..training.run import Run


def load_network(run: Run) -> torch.nn.Module:
    """The network of a run with its best weights, in evaluation mode.

    Raises BadInputError when the run has no weights yet, IntegrityError when they are broken.
    """
    if not run.weights.exists():
        raise BadInputError(f"{run.path}: no weights yet; finish this run first")
    spec = dict(run.config["network"])
    room, options = spec.pop("room"), spec.pop("options", {})
    spec["patch"] = tuple(spec["patch"])
    network = {"teachers": build_teacher, "students": build_student}[room](**spec, **options)
    load_weights(network, run.weights)
    return network.eval()
