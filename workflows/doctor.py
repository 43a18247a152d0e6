"""samkd doctor: what of samkd works on this machine."""

import importlib.metadata
import importlib.util
import os
import sys


def examine() -> list[tuple[str, str, str]]:
    """(what, state, what to do) for everything samkd can use on this machine."""
    rows = [("python", sys.version.split()[0], ""), ("cores", str(os.cpu_count()), "")]
    extras = {
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
    for name, extra in extras.items():
        try:
            rows.append((name, importlib.metadata.version(name), ""))
        except importlib.metadata.PackageNotFoundError:
            rows.append((name, "missing", f"pip install 'samkd[{extra}]'" if extra else f"pip install {name}"))
    from ..deploy.export.registry import TARGETS, target_named

    for name in TARGETS:
        target = target_named(name)
        missing = [each for each in (*target.libraries, *target.tools) if importlib.util.find_spec(each) is None]
        if missing:
            rows.append((f"target {name}", f"needs {', '.join(missing)}", "pip install 'samkd[openvino,onnx]'"))
        elif target.works():
            rows.append((f"target {name}", "works", f"precisions {', '.join(target.inference)}"))
        else:
            told = f"packs what the engine of {target.stand_in} judged; its own needs a GPU and onnxruntime-gpu"
            rows.append((f"target {name}", "no engine", told))
    import torch

    devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    rows.append(("GPU", ", ".join(devices) or "none", "" if devices else "training runs on the CPU"))
    return rows
