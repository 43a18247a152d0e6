import sys

import pytest
from helpers.paths import CONFORMANCE


@pytest.fixture(autouse=True)
def one_thread_and_one_seed():
    """The same numbers wherever and in whatever order tests run; torch is left out where nothing has loaded it."""
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def pytest_terminal_summary(terminalreporter):
    """One line says whether the numbers of the authors' code were there to compare with."""
    skipped = [report for report in terminalreporter.stats.get("skipped", []) if "conformance" in str(report.longrepr)]
    found = any(CONFORMANCE.glob("*.safetensors"))
    state = f"found at {CONFORMANCE}" if found else f"absent from {CONFORMANCE} (set SAMKD_CONFORMANCE)"
    terminalreporter.write_line(f"conformance vectors: {state}, {len(skipped)} tests skipped for want of them")
