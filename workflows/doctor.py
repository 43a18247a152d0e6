"""samkd doctor: what of samkd works on this machine."""

import importlib.metadata
import importlib.util
import os
import sys

import torch

from ..deploy.export.registry import TARGETS, target_named

# Every library that samkd can use, and the extra that brings it ("": samkd itself needs it).
LIBRARIES = {
    "torch": "",
    "monai": "",
    "segment-anything": "",
    "openvino": "openvino",
    "nncf": "openvino",
    "onnx": "onnx",
    "onnxscript": "onnx",
    "onnxruntime": "onnx",
    "cryptography": "sign",
    "pydicom": "dicom",
}
Row = tuple[str, str, str]


def examine() -> list[Row]:
    """(what, state, what to do) for everything samkd can use on this machine."""
    return [
        ("python", sys.version.split()[0], ""),
        ("cores", str(os.cpu_count()), ""),
        *(_library(name, extra) for name, extra in LIBRARIES.items()),
        *(_target(name) for name in TARGETS),
        _gpu(),
    ]


def _library(name: str, extra: str) -> Row:
    try:
        return name, importlib.metadata.version(name), ""
    except importlib.metadata.PackageNotFoundError:
        return name, "missing", f"pip install 'samkd[{extra}]'" if extra else f"pip install {name}"


def _target(name: str) -> Row:
    target = target_named(name)
    missing = [each for each in (*target.libraries, *target.tools) if importlib.util.find_spec(each) is None]
    if missing:
        return f"target {name}", f"needs {', '.join(missing)}", "pip install 'samkd[openvino,onnx]'"
    if target.works():
        return f"target {name}", "works", f"precisions {', '.join(target.inference)}"
    advice = f"packs what the engine of {target.stand_in} judged; its own needs a GPU and onnxruntime-gpu"
    return f"target {name}", "no engine", advice


def _gpu() -> Row:
    devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return "GPU", ", ".join(devices) or "none", "" if devices else "training runs on the CPU"
