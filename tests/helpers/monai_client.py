"""MONAI Label's own client class, where its package lies: in the folder SAMKD_MONAILABEL, or installed without its
dependencies. Its `__init__` and all else of it stay out; `requests`, which it needs, may lie beside its folder.
"""

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any


def client_module() -> tuple[Any, str]:
    """The module `monailabel.client.client`, or None and the reason why not."""
    folder = os.environ.get("SAMKD_MONAILABEL")
    if folder is None:
        found = importlib.util.find_spec("monailabel")
        folder = found.submodule_search_locations[0] if found and found.submodule_search_locations else ""
    path = Path(folder) / "client" / "client.py"
    if not path.is_file():
        return None, "MONAI Label's client is not here: pip install --no-deps --target DIR monailabel; SAMKD_MONAILABEL"
    if importlib.util.find_spec("cgi") is None:
        return None, "MONAI Label's client needs the module cgi, which this Python has no more"
    if importlib.util.find_spec("requests") is None:
        sys.path.append(str(path.parents[2]))
    if importlib.util.find_spec("requests") is None:
        return None, "MONAI Label's client needs requests: pip install requests"
    spec = importlib.util.spec_from_file_location("monailabel_client", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module, ""
