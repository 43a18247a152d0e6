"""Configs on disk: one YAML per dataset, by name or path, and the overrides of the command line."""

from importlib import resources
from pathlib import Path
from typing import Any

from ..errors import BadInputError, UsageError
from .evaluation_schema import Evaluation
from .plan_schema import Strict
from .schema import Config
from .validate import validated
from .yaml_files import parse_yaml, read_yaml

_FOLDER = resources.files(__name__.rpartition(".")[0])


def config_names() -> list[str]:
    """Names of the configs in configs/."""
    return sorted(entry.name.removesuffix(".yaml") for entry in _FOLDER.iterdir() if entry.name.endswith(".yaml"))


def configs() -> list[Config]:
    """Every config in configs/."""
    return [load_config(name) for name in config_names()]


def load_config(source: str = "phantom", overrides: list[str] | None = None) -> Config:
    """Read a config by name or path and apply dotted overrides such as ``student.training.steps=50``.

    A config may say ``extends: NAME``: it is then that config with this file's top-level keys in place of its own.
    Raises UsageError naming every fault at once.
    """
    return parse_config(_read(source, ()), overrides=overrides or [], source=source)


def _read(source: str, heirs: tuple[str, ...]) -> dict:
    if source in heirs:
        raise UsageError(f"{source}: configs extend each other in a circle: {' -> '.join((*heirs, source))}")
    if source.endswith((".yaml", ".yml")):
        path = Path(source)
        if not path.is_file():
            raise UsageError(f"{source}: no such config file; give a YAML file or one of {config_names()}")
        try:
            values = read_yaml(path)
        except BadInputError as error:
            raise UsageError(str(error)) from None
    elif source in config_names():
        values = parse_yaml(_FOLDER.joinpath(f"{source}.yaml").read_text(encoding="utf-8"))
    else:
        raise UsageError(f"{source!r} is no config; give a YAML file or one of {config_names()}")
    if not isinstance(values, dict):
        raise UsageError(f"{source}: expected a mapping of keys, found {type(values).__name__}")
    parent = values.pop("extends", None)
    return values if parent is None else {**_read(str(parent), (*heirs, source)), **values}


def parse_config(values: dict, *, overrides: list[str] | None = None, source: str = "config") -> Config:
    """A mapping as a Config, overrides applied. Raises UsageError naming every fault at once."""
    for override in overrides or []:
        _apply(values, override)
    return validated(values, source=source, kind=Config)


class _Scoring(Strict):
    """The part of a config that decides scores."""

    evaluation: Evaluation


def parse_evaluation(evaluation: Evaluation, overrides: list[str]) -> Evaluation:
    """The section with overrides such as ``evaluation.tolerance_mm=5``. Raises UsageError, also for other keys."""
    values = {"evaluation": evaluation.model_dump()}
    for override in overrides:
        _apply(values, override)
    return validated(values, source="--set", kind=_Scoring).evaluation


def _apply(values: dict, override: str) -> None:
    dotted, separator, text = override.partition("=")
    if not separator or not dotted:
        raise UsageError(f"override {override!r}: expected key.path=value, for example student.training.steps=50")
    *parents, leaf = dotted.split(".")
    for key in parents:
        values = values.setdefault(key, {})
        if not isinstance(values, dict):
            raise UsageError(f"override {override!r}: {key!r} is not a group of keys")
    values[leaf] = _value(text, override)


def _value(text: str, override: str) -> Any:
    try:
        return parse_yaml(text)
    except ValueError as error:
        raise UsageError(f"override {override!r}: the value is not valid YAML ({error})") from None
