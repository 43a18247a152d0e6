"""samkd: distil SAM-adapter teachers into small students and package them for the machine beside the patient.

The public names below are loaded on first use, so that `import samkd` costs nothing:

    from pathlib import Path
    import samkd

    options = samkd.PredictOptions(scans=[Path("scan.nii.gz")], output=Path("mask.nii.gz"))
    samkd.predict(Path("runs/packages/NAME"), options)

    model = samkd.load_model(Path("runs/packages/NAME"))
    labels = model.segment(samkd.read_scan("scan.nii.gz"))  # [D, H, W], on the scan's own grid

On a device, where runtime.pyz holds this file without the workflows, only `Plan`, `PredictOptions`, `SamkdError`,
`Volume`, `read_scan` and `__version__` are there.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .deploy.runtime.predict import PredictOptions
    from .errors import SamkdError
    from .volumes.geometry import Volume
    from .volumes.io.nifti import read_scan
    from .volumes.plan import Plan
    from .workflows.evaluate import evaluate
    from .workflows.models import load_model
    from .workflows.predict import predict

__version__ = "0.1.0"
__all__ = [
    "Plan",
    "PredictOptions",
    "SamkdError",
    "Volume",
    "__version__",
    "evaluate",
    "load_model",
    "predict",
    "read_scan",
]

_MODULES = {
    "Plan": ".volumes.plan",
    "PredictOptions": ".deploy.runtime.predict",
    "SamkdError": ".errors",
    "Volume": ".volumes.geometry",
    "evaluate": ".workflows.evaluate",
    "load_model": ".workflows.models",
    "predict": ".workflows.predict",
    "read_scan": ".volumes.io.nifti",
}


def __getattr__(name: str) -> Any:
    """A public name, from the module that defines it. Raises AttributeError for any other name."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULES[name], __name__), name)
    globals()[name] = value  # found directly from now on
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
