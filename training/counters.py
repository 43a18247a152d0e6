"""How far a training is: the numbers that its state file holds."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ..errors import IntegrityError


@dataclass
class Counters:
    """What a resumed run needs beside weights and optimiser, in the names that the state file has.

    ``stale`` counts validations since the best one, ``failures`` the steps in a row that were not finite, ``skipped``
    all of those.
    """

    step: int = 0
    best_dice: float = -1.0
    best_step: int = 0
    stale: int = 0
    failures: int = 0
    skipped: int = 0
    seconds: float = 0.0

    @classmethod
    def read(cls, values: Mapping[str, Any], *, steps: int, path: Path) -> "Counters":
        """The counters of a state file, of a run of ``steps``. Raises IntegrityError for what cannot be such."""
        known = {field.name: field.type for field in fields(cls)}
        integers = [values[name] for name, kind in known.items() if kind is int and name in values]
        sound = (
            values.keys() <= known.keys()
            and all(type(number) in (int, float) for number in values.values())
            and all(type(number) is int and 0 <= number <= steps for number in integers)
            and -1 <= values.get("best_dice", 0) <= 1
            and 0 <= values.get("seconds", 0) < math.inf
        )
        if not sound:
            raise IntegrityError(
                f"{path}: its counters cannot be those of a run of {steps} steps ({dict(values)}); remove this file, "
                "and the same command begins the run anew"
            )
        return cls(**values)
