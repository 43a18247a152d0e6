"""A finished run as a torch network: any of them may teach, predict or be packed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import BadInputError, IntegrityError
from ..sam.packaged_weights import find_weights
from ..students import student_from_spec
from ..teachers import teacher_from_spec
from ..training.checkpoint import load_weights
from ..training.run import Run
from ..volumes.files import file_digest

if TYPE_CHECKING:
    from ..students import Student
    from ..teachers.base import TeacherNetwork


def load_network(run: Run, *, pretrained_path: Path | None = None) -> TeacherNetwork | Student:
    """The network of a run with its best weights, in evaluation mode.

    A teacher that adapts published weights is put together again: `pretrained_path` is their file, or its name in
    sam.packaged_weights (default: where it lay when the teacher was trained). Raises BadInputError when the run has no
    weights yet or the published file is gone, IntegrityError when the weights are broken or it is another file.
    """
    if not run.weights.exists():
        raise BadInputError(f"{run.path}: no weights yet; finish this run first")
    if run.config.network.family == "students":
        network = student_from_spec(run.config.network)
    else:
        network = teacher_from_spec(run.config.network)
        if pretrained := run.config.adapted_file:
            path = find_weights(pretrained_path) if pretrained_path else Path(run.config.pretrained_path or "")
            if not path.is_file():
                raise BadInputError(
                    f"{path}: {run.path} adapts this file ({pretrained.name}); say where it is: --weights"
                )
            if file_digest(path) != pretrained.sha256:
                raise IntegrityError(
                    f"{path}: not the weights that {run.path} adapts ({pretrained.name}, sha256 {pretrained.sha256}); "
                    "give that very file with --weights"
                )
            network.load_pretrained(path)
            network.freeze_pretrained()
    load_weights(network, run.weights)
    return network.eval()
