"""Values as a Config: every fault is named, all of them together, with the key that was probably meant."""

import difflib
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from ..errors import UsageError
from .schema import Config

Kind = TypeVar("Kind", bound=BaseModel)


def validated(values: dict, *, source: str, kind: type[Kind]) -> Kind:
    """A mapping as a Config, or as a part of one. Raises UsageError naming every fault at once."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        lines = [_explain(fault) for fault in error.errors()]
        raise UsageError(f"{source}: {len(lines)} fault(s)\n  " + "\n  ".join(lines)) from None


def _explain(fault: Any) -> str:
    where = ".".join(str(part) for part in fault["loc"])
    if fault["type"] != "extra_forbidden":
        given = "" if fault["type"] == "missing" else f" (given: {fault['input']!r})"
        return f"{where}: {fault['msg']}{given}"
    close = difflib.get_close_matches(str(fault["loc"][-1]), _known_keys(), n=1)
    return f"{where}: unknown key" + (f"; did you mean {close[0]!r}?" if close else "")


def _known_keys() -> set[str]:
    keys: set[str] = set()
    pending: list[Any] = [Config]
    while pending:
        kind = pending.pop()
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            for name, field in kind.model_fields.items():
                keys.add(field.alias or name)
                pending.append(field.annotation)
        else:
            pending.extend(get_args(kind))
    return keys
