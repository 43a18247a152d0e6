"""Prompts as a user writes them: on the command line, or in a file for several classes.

A point is ``x,y,z`` or ``x,y,z,label`` (label 1: inside the class, 0: outside; 1 when left out), a box is
``x0,y0,z0,x1,y1,z1``; in millimetres or voxels, as volumes.prompts.ScanPrompts has them. A file::

    {"space": "mm", "classes": {"liver": {"points": [[-40, 12.5, 30, 1], [5, 5, 5, 0]],
                                          "boxes": [[-90, 0, 0, 10, 80, 60]]}}}

"space" ("mm" or "voxel"; default "mm"), "points" and "boxes" may be left out; a class may have several boxes, each on
slices of its own. A string "origin" beside them may say who drew the prompts, and from what; nothing depends on it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, get_args

from ..errors import BadInputError, SamkdError, UsageError
from .prompts import ClassPrompts, ScanPrompts, Space, require_prompt_kinds


@dataclass(frozen=True)
class Request:
    """Prompts as the command line has them: a file, or points and boxes of one class."""

    points: Sequence[str] = ()
    boxes: Sequence[str] = ()
    name: str | None = None
    space: str = "mm"
    file: Path | None = None

    @property
    def given(self) -> bool:
        return bool(self.points or self.boxes or self.name or self.file)

    def prompts_for(
        self, model: object, *, class_names: Mapping[int, str], prompt_kinds: frozenset[str]
    ) -> ScanPrompts:
        """The prompts for a model of these classes that takes these kinds of prompts.

        Raises what `resolve` and require_prompt_kinds raise.
        """
        require_prompt_kinds(model, prompt_kinds=prompt_kinds)
        prompts = self.resolve(class_names)
        require_prompt_kinds(model, prompt_kinds=prompt_kinds, kinds=prompts.kinds)
        return prompts

    def resolve(self, labels: Mapping[int, str]) -> ScanPrompts:
        """The prompts for a network of these classes. Raises UsageError for the options, BadInputError for the file."""
        if self.file is not None:
            if self.points or self.boxes or self.name or self.space != "mm":
                raise UsageError("--prompts: the file says it all; leave out --point, --box, --class and --space")
            return read_prompts(self.file, labels)
        parser = _Parser("", UsageError, labels)
        space = parser.space(self.space)
        if not self.points and not self.boxes:
            raise UsageError(f"--class {self.name}: give its --point or --box")
        names = [name for value, name in labels.items() if value]
        if self.name is None and len(names) != 1:
            raise UsageError(f"a prompt belongs to a class: say --class, one of {', '.join(names)}")
        points = [_numbers("--point", text) for text in self.points]
        boxes = [_numbers("--box", text) for text in self.boxes]
        return ScanPrompts({parser.value(self.name or names[0]): parser.prompts(points, boxes, space)}, space)


def read_prompts(path: str | Path, labels: Mapping[int, str]) -> ScanPrompts:
    """A file of prompts, as described above, for a network of these classes. Raises BadInputError naming the fault."""
    path = Path(path)
    try:
        text = path.read_bytes()
    except OSError as error:
        raise BadInputError(f"{path}: cannot be read ({error.strerror or error}).") from error
    return parse_prompts(text, labels, source=str(path))


def parse_prompts(text: str | bytes, labels: Mapping[int, str], *, source: str) -> ScanPrompts:
    """The content of such a file; `source` names it in a BadInputError."""
    parser = _Parser(f"{source}: ", BadInputError, labels)
    try:
        content = json.loads(text, object_pairs_hook=parser.distinct)
    except SamkdError:
        raise
    except (ValueError, RecursionError) as error:
        raise BadInputError(f"{source}: is not valid JSON ({error}).") from error
    parser.keys(content, {"origin", "space", "classes"}, "the file")
    if not isinstance(content.get("origin", ""), str):
        parser.fail(f'"origin" is {json.dumps(content["origin"])[:200]}; expected words, such as who drew the prompts')
    space = parser.space(content.get("space", "mm"))
    classes = content.get("classes")
    if not isinstance(classes, dict) or not classes:
        parser.fail(f'"classes" is {json.dumps(classes)}; expected {{"class name": {{"points": [...]}}}}')
    prompts_by_class = {}
    for name, entry in classes.items():
        parser.keys(entry, {"points", "boxes"}, f"class {name!r}")
        points, boxes = entry.get("points", []), entry.get("boxes", [])
        if not isinstance(points, list) or not isinstance(boxes, list) or not points + boxes:
            parser.fail(f"class {name!r} has {json.dumps(entry)}; expected a list of points, of boxes, or both")
        prompts_by_class[parser.value(name)] = parser.prompts(points, boxes, space)
    return ScanPrompts(prompts_by_class, space)


class _Parser:
    """Checks prompts and raises each fault as the error of their source."""

    def __init__(self, source: str, error: type[SamkdError], labels: Mapping[int, str]):
        self.source, self.error, self.labels = source, error, labels

    def fail(self, fault: str) -> NoReturn:
        raise self.error(f"{self.source}{fault}.")

    def distinct(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) < len(pairs):
            self.fail(f"a key stands twice among {[key for key, _ in pairs]}; join the two")
        return content

    def keys(self, entry: Any, known: set[str], where: str) -> None:
        if not isinstance(entry, dict) or not set(entry) <= known:
            self.fail(f"{where} holds {json.dumps(entry)[:200]}; expected an object with the keys {sorted(known)}")

    def space(self, space: Any) -> Space:
        if space not in get_args(Space):
            self.fail(f"space {space!r} is unknown; choose one of {', '.join(get_args(Space))}")
        return space

    def value(self, name: str) -> int:
        known = {label: value for value, label in self.labels.items() if value}
        if name not in known:
            self.fail(f"class {name!r} is unknown to this network; choose one of {', '.join(known)}")
        return known[name]

    def prompts(self, points: Sequence[Any], boxes: Sequence[Any], space: Space) -> ClassPrompts:
        return ClassPrompts(tuple(map(self._point, points)), tuple(self._box(box, space) for box in boxes))

    def _point(self, point: Any) -> tuple[float, ...]:
        numbers = self._finite(point, "point", (3, 4), "x,y,z or x,y,z,label")
        if len(numbers) == 4 and numbers[3] not in (0, 1):
            self.fail(f"point {point} has the label {numbers[3]:g}; expected 1 (inside the class) or 0 (outside)")
        return numbers if len(numbers) == 4 else (*numbers, 1)

    def _box(self, box: Any, space: Space) -> tuple[float, ...]:
        numbers = self._finite(box, "box", (6,), "x0,y0,z0,x1,y1,z1")
        for axis in range(3):
            low, high = numbers[axis], numbers[axis + 3]
            if low > high or (low == high and space == "mm"):  # one voxel is a box, a plane is none
                fault = "empty" if low == high else "inverted"
                self.fail(f"box {box} is {fault} along {'xyz'[axis]} ({low:g} to {high:g}); expected low before high")
        return numbers

    def _finite(self, numbers: Any, what: str, lengths: tuple[int, ...], form: str) -> tuple[float, ...]:
        if not isinstance(numbers, list) or len(numbers) not in lengths or not all(map(_is_number, numbers)):
            self.fail(f"{what} {json.dumps(numbers)}; expected {form}, finite numbers")
        return tuple(float(number) for number in numbers)


def _numbers(option: str, text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"{option} {text!r}: expected numbers joined by commas, without spaces.") from None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
