"""What the layouts share: a layout's description, reading dataset.json and labels.json, every fault at once."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ....errors import BadInputError
from ...files import visible_entries, visible_files
from ...io.foreign_formats import is_foreign, passed_over
from ...io.mask_codes import Code
from ...io.scans import bare_name
from ...json_files import read_json
from ..cases import Case, Dataset


@dataclass(frozen=True)
class Layout:
    name: str
    wanted: str  # what must be in the folder, for messages
    fits: Callable[[Path], bool]
    read: Callable[[Path], Dataset]


def description(root: Path) -> dict[str, Any]:
    """The content of dataset.json, empty without one. Raises BadInputError."""
    path = root / "dataset.json"
    content = read_json(path) if path.exists() else {}
    if not isinstance(content, dict):
        raise BadInputError(f"{path}: holds a {type(content).__name__}; expected an object.")
    return content


def sound(dataset: Dataset, faults: Sequence[str], *, source: Path) -> Dataset:
    """The dataset, if it has no fault and a case. Raises one BadInputError with every fault."""
    faults = [*faults, *_repeated((*dataset.training, *dataset.test))]
    if not faults and not dataset.training and not dataset.test:
        foreign = [path for path in visible_files(source) if is_foreign(path)]
        where = f"; {passed_over(source, foreign)}" if foreign else ""
        faults.append(f"lists no case, neither for training nor for test{where}")
    if faults:
        listed = "".join(f"\n  - {fault}" for fault in faults)
        raise BadInputError(f"{source}: has {len(faults)} fault(s); correct them:{listed}")
    return dataset


def whole_number(value: Any) -> int | None:
    """The number that 4, 4.0 or "4" stands for; None for anything else."""
    if isinstance(value, str) and value.strip().isdecimal() and len(value) < 10:
        return int(value)
    if isinstance(value, int | float) and not isinstance(value, bool) and value == value // 1:
        return int(value)
    return None


def check_count(content: Mapping[str, Any], key: str, count: int, what: str, faults: list[str]) -> None:
    """A fault where `key` announces another number of cases than the `count` that `what` ("imagesTr has") holds."""
    announced = content.get(key)
    if announced is None:
        return
    number = whole_number(announced)
    if number is None:
        faults.append(f'"{key}" is {json.dumps(announced)}; expected a number of cases')
    elif number != count:
        faults.append(f"{what} {count} case(s) where {key} announces {number}")


def with_any_suffix_case(path: Path) -> Path:
    """`path`, or where it does not exist the one file beside it that differs in the letter case of .nii.gz or .nii."""
    if path.exists() or not path.parent.is_dir():
        return path
    stem = bare_name(path)
    same = [
        other
        for other in visible_entries(path.parent)
        if other.name.lower() == path.name.lower() and bare_name(other) == stem
    ]
    return same[0] if len(same) == 1 else path


def prompts_in(folder: Path) -> dict[str, Path]:
    """The prompt files CASE.json of a folder, by case; none where there is no such folder."""
    return {path.stem: path for path in visible_entries(folder) if path.suffix.lower() == ".json"}


def strays(prompts: Mapping[str, Path], cases: Sequence[Case]) -> list[str]:
    """A fault for every prompt file that no training case is named after."""
    unknown = sorted(prompts.keys() - {case.name for case in cases})
    return [f"{prompts[name].parent.name}/{prompts[name].name} has no scan of its name" for name in unknown]


def numbered(content: Mapping[str, Any], key: str, faults: list[str]) -> dict[int, str]:
    """The entries of {"0": name, "1": name, ...} in order; a fault when it is anything else."""
    value = content.get(key)
    if not isinstance(value, dict) or not value:
        faults.append(f'"{key}" is {json.dumps(value)}; expected {{"0": name, ...}}')
        return {}
    wanted = [str(number) for number in range(len(value))]
    by_number = {whole_number(number): name for number, name in value.items()}
    if set(by_number) != set(range(len(value))):
        faults.append(f'"{key}" has the numbers {sorted(value)}; expected {wanted}, without gaps')
        return {}
    names = [by_number[number] for number in range(len(value))]
    if not different(names):
        faults.append(f'"{key}" has the names {names}; expected different, non-empty ones')
        return {}
    return dict(enumerate(names))


def different(names: Sequence[Any]) -> bool:
    return all(isinstance(name, str) and name for name in names) and len(set(names)) == len(names)


def read_classes(path: Path) -> tuple[dict[int, str], tuple[Code, ...] | None]:
    """Classes and what stands for them in the masks, from a labels.json. Raises BadInputError.

    It maps the numbers in the masks to names, {"0": "background", "255": "disc"}, or lists the classes with their
    colours as EndoVis does, [{"name": "background", "color": [0, 0, 0], "classid": 0}, ...]. Class 0 is the one named
    "background", else the lowest number.
    """
    content = read_json(path)
    classes: list[tuple[int, str, Code]] = []
    try:
        if isinstance(content, dict):
            classes = [(int(number), name, int(number)) for number, name in content.items()]
        else:
            classes = [(int(entry["classid"]), entry["name"], _colour(entry["color"])) for entry in content]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise BadInputError(
            f'{path}: expected {{"number": "name", ...}} or [{{"name": ..., "color": [r, g, b], "classid": ...}}, ...] '
            f"({type(error).__name__}: {error})."
        ) from error
    classes.sort(key=lambda entry: (entry[1] != "background", entry[0]))
    names, codes = [name for _, name, _ in classes], tuple(code for _, _, code in classes)
    if len(classes) < 2 or not different(names) or len(set(codes)) != len(codes):
        raise BadInputError(f"{path}: has the classes {names}; expected two or more, different in name and mask.")
    if any(isinstance(code, int) and not 0 <= code <= 65535 for code in codes):
        raise BadInputError(f"{path}: has the numbers {list(codes)}; expected 0 to 65535.")
    return dict(enumerate(names)), None if codes == tuple(range(len(codes))) else codes


def _colour(value: Any) -> Code:
    red, green, blue = (int(v) for v in value)
    if not all(0 <= v <= 255 for v in (red, green, blue)):
        raise ValueError(f"colour {value}")
    return red, green, blue


def _repeated(cases: Sequence[Case]) -> list[str]:
    faults = []
    names: set[str] = set()
    files: dict[Path, Path] = {}
    for case in cases:
        if case.name in names:
            faults.append(f"the case {case.name!r} is listed twice")
            continue
        names.add(case.name)
        for path in (*case.image.files, *(case.label.files if case.label else ())):
            first = files.setdefault(path.resolve(), path)
            if first is not path:
                faults.append(f"{path} is the same file as {first}" if first != path else f"{path} is listed twice")
    return faults
