"""Which parameters learn: adapters in a frozen image encoder declare their own, all others can be frozen."""

from collections.abc import Collection, Iterable
from typing import Protocol, runtime_checkable

from torch import nn


@runtime_checkable
class Adapter(Protocol):
    """A module that knows which of its parameters are the adapter's."""

    def adapter_parameters(self) -> Iterable[str]:
        """Names of the adapter's parameters, relative to the module."""
        ...


def adapter_names(model: nn.Module) -> frozenset[str]:
    """The full names of all parameters that the adapters inside `model` declare."""
    return frozenset(
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        if isinstance(module, Adapter)
        for name in module.adapter_parameters()
    )


def freeze(module: nn.Module, *, keep: Collection[str]) -> None:
    """Make exactly the parameters named in `keep` trainable."""
    assert set(keep) <= {name for name, _ in module.named_parameters()}, "keep names a parameter that is not there"
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in keep)
