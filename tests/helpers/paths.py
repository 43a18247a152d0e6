"""Where the repository lies, and the folder beside it that holds what is too large for it."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared"  # conformance vectors and real scans; tests that need them skip where it is absent
CONFORMANCE = Path(os.environ.get("SAMKD_CONFORMANCE", SHARED / "conformance"))
