import pytest

from samkd.deploy.runtime.serve.durations import parse_duration
from samkd.errors import UsageError


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("30m", 1800), ("1h", 3600), ("0.5d", 43200)])
def test_spans_of_time(text, seconds):
    assert parse_duration(text, option="--keep") == seconds


@pytest.mark.parametrize("text", ["", "1", "h", "-1h", "0s", "1w", "1e9h", "1h30m", "nan"])
def test_what_is_none_is_refused(text):
    with pytest.raises(UsageError, match=r"--keep .*for example 90s"):
        parse_duration(text, option="--keep")
