"""Whether the masks that a network is to learn from hold the classes it is to know."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import BadInputError
from .prepared import PreparedCase
from .progress import console


def check_taught_classes(cases: Sequence[PreparedCase], *, labels: Mapping[int, str], root: Path) -> None:
    """Warn of classes that no mask of the training `cases` holds on the network's grid, before the first step.

    Raises BadInputError, naming the dataset's folder `root`, when all of these masks are empty.
    """
    held = {label for case in cases for label in case.class_locations}
    absent = [name for label, name in labels.items() if label and label not in held]
    if cases and not held:
        raise BadInputError(
            f"{root}: all {len(cases)} training masks are empty on the network's grid; there is nothing to learn of "
            f"{', '.join(absent) or 'any class'}. Look at the masks with `samkd check`."
        )
    if absent:
        console.print(
            f"warning: in no training mask: {', '.join(absent)}; the network cannot learn what it is never shown"
        )
