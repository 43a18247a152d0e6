"""Which class of the dataset each class of predictions is: by classes.json, by nnU-Net's dataset.json, or itself."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import BadInputError
from ..volumes.datasets.layouts.nnunet import read_class_names
from ..volumes.json_files import read_json

TABLE = "classes.json"
_OTHERS = "*"
_WAY_OUT = (
    f'say in {TABLE} beside the predictions what each is, {{"4": "liver", "kidney_left": "kidney"}}; "background" '
    f'drops a class, and {{"{_OTHERS}": "background"}} all that are not named'
)


@dataclass(frozen=True)
class TeacherClasses:
    """The dataset's class of each class of the predictions, by its number in label maps and by its name.

    `others` is the class of all that are not named; None refuses them. `class_names` are the dataset's.
    """

    by_number: Mapping[int, int]
    by_name: Mapping[str, int]
    others: int | None
    class_names: Mapping[int, str]

    @classmethod
    def read(cls, folder: Path, class_names: Mapping[int, str]) -> "TeacherClasses":
        """Raises BadInputError for tables that cannot be read, or that name a class the dataset does not have."""
        own = {name: value for value, name in class_names.items()}
        table = _read_table(folder / TABLE, own) if (folder / TABLE).exists() else {}
        named = _read_names(folder / "dataset.json") if (folder / "dataset.json").exists() else {}
        numbers = {int(key): value for key, value in table.items() if key.isdecimal()}
        others = table.get(_OTHERS)
        by_name = own | {key: value for key, value in table.items() if key != _OTHERS and not key.isdecimal()}
        by_number = {number: by_name[name] for number, name in named.items() if name in by_name} | numbers
        strange = [name for number, name in named.items() if number not in by_number and number]
        if strange and others is None:
            raise BadInputError(
                f"{folder / 'dataset.json'}: names {', '.join(strange)}; the dataset's classes are "
                f"{', '.join(own)}. Where they differ, {_WAY_OUT}."
            )
        if not named and not numbers:
            by_number = {value: value for value in class_names}
        return cls({0: 0} | by_number, by_name, others, class_names)

    def of_number(self, number: int, path: Path) -> int:
        """The dataset's class of a number in a label map. Raises BadInputError for one that is not known."""
        return self._known(self.by_number.get(number, self.others), number, path)

    def of_name(self, name: str, path: Path) -> int:
        """The dataset's class of an organ's name. Raises BadInputError for one that is not known."""
        return self._known(self.by_name.get(name, self.others), name, path)

    def check_all_taught(self, classes: set[int], path: Path) -> None:
        """Raises BadInputError where predictions of these classes leave one of the dataset's without a teacher."""
        if absent := [name for value, name in self.class_names.items() if value and value not in classes]:
            raise BadInputError(
                f"{path}: knows nothing of {', '.join(absent)}; a teacher must know every class that the student "
                f"learns. If it names them otherwise, {_WAY_OUT}."
            )

    def _known(self, value: int | None, prediction_class: int | str, path: Path) -> int:
        if value is None:
            names = ", ".join(f"{number} {name}" for number, name in self.class_names.items())
            raise BadInputError(
                f"{path}: holds the class {prediction_class}; the dataset's classes are {names}. Where they differ, "
                f"{_WAY_OUT}."
            )
        return value


def _read_table(path: Path, own: Mapping[str, int]) -> dict[str, int]:
    content: Any = read_json(path)
    if not isinstance(content, dict) or not content or not all(isinstance(name, str) for name in content.values()):
        raise BadInputError(f'{path}: expected {{"class of the predictions": "class of the dataset", ...}}.')
    known = {"background": 0, **own}
    if strange := sorted({name for name in content.values() if name not in known}):
        raise BadInputError(f"{path}: names {', '.join(strange)}; the dataset's classes are {', '.join(own)}.")
    return {key: known[name] for key, name in content.items()}


def _read_names(path: Path) -> dict[int, str]:
    content, faults = read_json(path), []
    names = read_class_names(content.get("labels") if isinstance(content, dict) else None, faults)
    if faults:
        raise BadInputError(f"{path}: {'; '.join(faults)}. Or {_WAY_OUT}, and leave dataset.json out.")
    return names
