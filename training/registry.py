"""Networks by name: a registry maps a name to the place of its builder, which is imported only to build it."""

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

from ..errors import SamkdError, UsageError


def build_registered(
    registry: Mapping[str, str], name: str, *, kind: str, package: str, options: Mapping[str, Any], **shape: Any
) -> Any:
    """The network ``name`` of a registry, whose values are "module:builder" with the module relative to ``package``.

    ``shape`` are the arguments that every builder of the registry takes, ``options`` those that this one adds; ``kind``
    is what messages call it. Raises UsageError for an unknown name or
    option, and for values of which no network can be built.
    """
    check_registered(registry, name, kind=kind)
    module, builder_name = registry[name].split(":")
    builder = getattr(importlib.import_module(f".{module}", package), builder_name)
    known = [option for option in inspect.signature(builder).parameters if option not in shape]
    if unknown := sorted(set(options) - set(known)):
        raise UsageError(
            f"{kind} {name!r} has no option {', '.join(unknown)}: choose among {', '.join(known) or 'none'}"
        )
    try:
        return builder(**shape, **options)
    except SamkdError:
        raise
    except (TypeError, ValueError, RuntimeError, AssertionError, ArithmeticError, LookupError, AttributeError) as error:
        raise UsageError(
            f"{kind} {name!r} cannot be built with {dict(shape) | dict(options)}: {type(error).__name__}: {error}"
        ) from error


def check_registered(registry: Mapping[str, str], name: str, *, kind: str) -> None:
    """Raises UsageError for a name that the registry does not have."""
    if name not in registry:
        raise UsageError(f"unknown {kind} {name!r}: choose one of {', '.join(registry)}")
