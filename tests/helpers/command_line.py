"""One way to run `samkd`: as a process of its own, as a user does, or inside the test's process, which is faster."""

import contextlib
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

COLUMNS = "200"  # wide enough that no line of a table is folded


@dataclass(frozen=True)
class Outcome:
    """How a command ended and what it wrote."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def output(self) -> str:
        """What it wrote to both streams."""
        return self.stdout + self.stderr

    @property
    def text(self) -> str:
        """What it wrote to both streams, with single spaces, so that no line break hides a phrase."""
        return " ".join(self.output.split())


def run_cli(*arguments: object, cwd: Path | None = None, in_process: bool = False) -> Outcome:
    """Run `samkd` with `arguments` in the folder `cwd` (default: the present one).

    A process of its own is stopped after five minutes, which fails the test. In the test's own process an error that
    the command line does not turn into an exit code is raised here.
    """
    words = [str(argument) for argument in arguments]
    if in_process:
        from typer.testing import CliRunner

        from samkd.cli.app import app

        with contextlib.chdir(cwd or "."):
            result = CliRunner(env={"COLUMNS": COLUMNS}).invoke(app, words, catch_exceptions=False)
        return Outcome(result.exit_code, result.stdout, result.stderr)
    done = subprocess.run(
        [sys.executable, "-m", "samkd", *words],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=300,
        check=False,
        env={**os.environ, "COLUMNS": COLUMNS},
    )
    return Outcome(done.returncode, done.stdout, done.stderr)
