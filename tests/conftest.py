import logging
import shutil
import sys
from collections import Counter

import pytest
from helpers.paths import CONFORMANCE


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, so that no worker is left with one of them when the others have no more to do."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: ("e2e" not in item.path.parts, -slow[item.path]))


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


class _Lines(logging.Handler):
    """Keeps what is logged, a line each."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture
def log_lines():
    """The lines of samkd's log from here on, whatever libraries that earlier tests ran have made of other loggers.

    pytest's caplog hears what reaches the root logger alone, at a level that OpenVINO's converter and others set.
    """
    logging.disable(logging.NOTSET)
    for name in ["samkd", *(name for name in logging.root.manager.loggerDict if name.startswith("samkd."))]:
        log = logging.getLogger(name)
        log.setLevel(logging.NOTSET)
        log.disabled, log.propagate = False, True
    log, handler = logging.getLogger("samkd"), _Lines()
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    yield handler.lines
    log.removeHandler(handler)
    log.setLevel(logging.NOTSET)


# What several rooms test with: helpers.packages is imported by the fixtures, for it loads torch.


@pytest.fixture(scope="session")
def levels():
    """A network that segments by intensity alone: its own masks are the truth of every case here."""
    from helpers.packages import Levels

    return Levels()


@pytest.fixture
def job(tmp_path):
    from helpers.packages import deploy

    return lambda network, **changes: deploy(network, tmp_path, **changes)


@pytest.fixture(scope="session")
def scan():
    from helpers.packages import make_scan

    return make_scan


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """The package of the network of `levels`, not to be changed."""
    from helpers.packages import Levels, deploy

    return deploy(Levels(), tmp_path_factory.mktemp("built"))


@pytest.fixture(scope="session")
def built_promptable(tmp_path_factory):
    """The package of an untrained promptable student, not to be changed."""
    from helpers.promptable import lively_student, packed

    return packed(lively_student(), tmp_path_factory.mktemp("built_promptable"))


@pytest.fixture
def package(built, tmp_path):
    """A package folder to damage, with its zip beside it."""
    shutil.copyfile(built.with_name("student.zip"), tmp_path / "student.zip")
    return shutil.copytree(built, tmp_path / "student")


def pytest_terminal_summary(terminalreporter):
    """One line says whether the numbers of the authors' code were there to compare with."""
    skipped = [report for report in terminalreporter.stats.get("skipped", []) if "conformance" in str(report.longrepr)]
    result = any(CONFORMANCE.glob("*.safetensors"))
    state = f"found at {CONFORMANCE}" if result else f"absent from {CONFORMANCE} (set SAMKD_CONFORMANCE)"
    terminalreporter.write_line(f"conformance vectors: {state}, {len(skipped)} tests skipped for want of them")
