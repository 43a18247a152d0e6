"""Published weights that are on this machine, for the tests that need the real ones."""

from pathlib import Path

import pytest

from samkd.errors import MissingExtraError
from samkd.sam.packaged_weights import find_weights


def litemedsam_weights() -> Path:
    """LiteMedSAM's published file; the test is skipped where samkd[litemedsam] is not installed."""
    try:
        return find_weights(Path("litemedsam"))
    except MissingExtraError as error:
        pytest.skip(str(error))
