"""benchmarks/attack.py, briefly: nothing that it does ends in a traceback, a hang or a silent change.

Its kills are those of test_train_kills.py.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.mark.slow
def test_a_short_attack_finds_nothing(tmp_path):
    command = [sys.executable, BENCHMARKS / "attack.py", "--scale", "0.02", "--work", tmp_path]
    command += ["--only", "damaged", "weights", "fuzz"]
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    process = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False, env=environment
    )
    said = process.stdout + process.stderr
    assert process.returncode == 0, said
    assert "0 tracebacks, 0 hangs over 20 s\n0 silent acceptances" in said


@pytest.fixture
def attacks(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from attacks import attempts, fuzz

    return attempts, fuzz


def test_the_attack_counts_what_must_not_happen(attacks, tmp_path):
    """A traceback, a hang, and a reader that does not check a sum are told from a refusal."""
    attempts, fuzz = attacks
    tally = attempts.Tally("these")
    outcomes = {
        "refused": attempts.Outcome(3, "error: it is damaged", 0.1),
        "traceback": attempts.Outcome(1, "Traceback (most recent call last)", 0.1),
        "hang": attempts.Outcome(-9, "", 21.0, hung=True),
        "silent": attempts.Outcome(0, "", 0.1),
    }
    for outcome in outcomes.values():
        attempts.judge(tally, outcome, "an input", must_refuse=True)
    assert dict(tally.counts) == dict.fromkeys(outcomes, 1) and len(tally.details) == 3
    assert "| these | 4 | 1 | 0 | 0 | 1 | 1 | 1 | 0 |" in attempts.table([tally])

    path = tmp_path / "values.bin"
    path.write_bytes(bytes(range(64)))
    careless = fuzz.Format("bytes", path, lambda path: np.frombuffer(path.read_bytes(), np.uint8), summed=True)
    counts = fuzz.fuzz(careless, count=20, seed=0).counts
    assert counts["silent"] > 0 and counts["refused"] == 0
    assert path.read_bytes() == bytes(range(64))
