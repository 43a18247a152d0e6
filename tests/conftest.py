import sys

import pytest


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
