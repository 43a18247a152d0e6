"""What stands for a class in a mask file, when it is not the class's own number: another number, or a colour."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...errors import BadInputError

Code = int | tuple[int, int, int]  # a number, or red, green and blue from 0 to 255


def decoded(values: np.ndarray, codes: Sequence[Code], path: Path) -> np.ndarray:
    """Classes [...], uint8 or uint16, from the numbers [...] or the colours [..., 3] that stand for them, class by
    class, in `codes`. Raises BadInputError, naming the file, for any that stands for none.
    """
    colours = values.ndim > 0 and isinstance(codes[0], tuple)
    numbers = values.astype(np.int64)
    if colours:
        numbers = (numbers[..., 0] << 16) | (numbers[..., 1] << 8) | numbers[..., 2]
    known = np.array([(c[0] << 16) | (c[1] << 8) | c[2] if isinstance(c, tuple) else c for c in codes])
    order = np.argsort(known)
    at = np.minimum(np.searchsorted(known[order], numbers), len(codes) - 1)
    strange = np.unique(numbers[known[order][at] != numbers]).tolist()
    if strange:
        named = [(v >> 16, v >> 8 & 255, v & 255) for v in strange] if colours else strange
        more = f" and {len(named) - 5} more" if len(named) > 5 else ""
        raise BadInputError(
            f"{path}: holds {', '.join(map(str, named[:5]))}{more}; the {'colours' if colours else 'numbers'} of the "
            f"dataset's classes are {', '.join(map(str, codes))}. Correct the mask, or declare the class."
        )
    return order[at].astype(np.uint8 if len(codes) <= 256 else np.uint16)
