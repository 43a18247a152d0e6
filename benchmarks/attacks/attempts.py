"""Running a command of samkd in a child of this process, which may be killed, starved or left hanging.

The parent has imported what the verbs import, so that a child is there in milliseconds; it computes nothing itself, so
that no thread is lost in the fork.
"""

import fcntl
import os
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

SECONDS = 20.0  # a refusal that takes longer counts as a hang
TRAINING = 900.0  # what trains, packs or converts may take, beside other work on the machine
_PIPE = 1 << 20  # bytes that a child may write
KILLED = -int(signal.SIGKILL)
CLEAR = (0, 2, 3, 4, 5, 6)  # the exit codes that samkd promises


@dataclass(frozen=True)
class Outcome:
    """How a command ended: its exit code, negative for a signal; what it wrote; whether it had to be stopped."""

    code: int
    output: str
    seconds: float
    hung: bool = False

    @property
    def crashed(self) -> bool:
        """Whether it ended otherwise than with one clear error: a traceback, a signal, an unknown exit code."""
        return not self.hung and (self.code not in CLEAR or "Traceback (most recent call last)" in self.output)

    @property
    def refused(self) -> bool:
        return self.code in CLEAR[1:] and not self.crashed


@dataclass
class Tally:
    """What came of the attacks of one kind."""

    kind: str
    counts: Counter[str] = field(default_factory=Counter)
    details: list[str] = field(default_factory=list)  # of what must not happen

    def add(self, result: str, detail: str = "") -> None:
        """`result` is "refused", "accepted", "held", or a fault: "traceback", "hang", "silent", "lost"."""
        self.counts[result] += 1
        if result in FAULTS:
            self.details.append(f"{self.kind}: {result}: {detail}")


FAULTS = ("traceback", "hang", "silent", "lost")


def warm_up() -> None:
    """Import what the verbs need, without computing anything. PyTorch and OpenVINO start their threads later."""
    import monai.networks.nets.swin_unetr
    import nibabel
    import openvino
    import safetensors.torch
    import torch

    import samkd.cli.app
    import samkd.deploy.runtime.cli
    import samkd.workflows.deploy
    import samkd.workflows.distill
    import samkd.workflows.evaluate
    import samkd.workflows.predict

    assert all((monai, nibabel, openvino, safetensors, torch, samkd))


def samkd(*arguments: object, **options) -> Outcome:
    """Run `samkd ARGUMENTS` in a child."""

    def run() -> None:
        from samkd.cli.app import app

        app([str(each) for each in arguments], prog_name="samkd")

    return child(run, **options)


def runtime(*arguments: object, **options) -> Outcome:
    """Run `python runtime.pyz ARGUMENTS` in a child, with this repository's own runtime."""

    def run() -> None:
        from samkd.deploy.runtime.__main__ import main

        sys.exit(main([str(each) for each in arguments]))

    return child(run, **options)


def child(
    run: Callable[[], None],
    *,
    seconds: float = SECONDS,
    kill_after: float | None = None,
    file_bytes: int | None = None,
    threads: int = 1,
) -> Outcome:
    """Run a function in a child; `kill_after` seconds it is killed, and no file may grow beyond `file_bytes`."""
    started = time.perf_counter()
    reading, writing = os.pipe()  # not a file, which `file_bytes` would limit, too
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, _PIPE)
    process = os.fork()
    if process == 0:
        _be_child(run, writing, file_bytes, threads)
    os.close(writing)
    limit = seconds if kill_after is None else kill_after
    status = _waited(process, limit)
    hung = status is None
    if status is None:
        os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
    os.set_blocking(reading, False)  # a child of the child may still hold the other end
    with os.fdopen(reading, "rb") as output:
        text = (output.read(_PIPE) or b"").decode(errors="replace")
    code = os.waitstatus_to_exitcode(status)
    return Outcome(code, text, time.perf_counter() - started, hung=hung and kill_after is None)


def _waited(process: int, seconds: float) -> int | None:
    """The child's status; None where it still runs after `seconds`."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return status
        time.sleep(0.005)
    return None


def _be_child(run: Callable[[], None], output: int, file_bytes: int | None, threads: int) -> None:
    code = 1
    try:
        os.dup2(output, 1)
        os.dup2(output, 2)
        import torch

        torch.set_num_threads(threads)
        if file_bytes is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
        try:
            run()
            code = 0
        except SystemExit as ending:
            code = ending.code if isinstance(ending.code, int) else int(ending.code is not None)
        except BaseException:
            import traceback

            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def judge(tally: Tally, outcome: Outcome, detail: str, *, must_refuse: bool = False) -> None:
    """Count an outcome; `must_refuse` where a checksum tells that the input was changed."""
    last = outcome.output.strip().splitlines()[-1:] or [""]
    if outcome.hung:
        tally.add("hang", f"{detail}: {outcome.seconds:.0f} s")
    elif outcome.crashed:
        tally.add("traceback", f"{detail}: exit {outcome.code}: {last[0]}")
    elif outcome.refused:
        tally.add("refused")
    elif must_refuse:
        tally.add("silent", f"{detail}: exit 0")
    else:
        tally.add("accepted")


def table(tallies: Sequence[Tally]) -> str:
    """What came of everything, a row for each kind."""
    columns = ("refused", "accepted", "held", *FAULTS)
    lines = [f"| attack | n | {' | '.join(columns)} |", f"|---|{'---|' * (len(columns) + 1)}"]
    for tally in tallies:
        counts = " | ".join(str(tally.counts[name]) for name in columns)
        lines.append(f"| {tally.kind} | {sum(tally.counts.values())} | {counts} |")
    return "\n".join(lines)


def copied(source: Path, target: Path) -> Path:
    """A fresh copy of a file or folder, links kept."""
    import shutil

    if target.is_symlink() or target.is_file():
        target.unlink()
    elif target.is_dir():
        shutil.rmtree(target)
    return Path(shutil.copytree(source, target, symlinks=True) if source.is_dir() else shutil.copy(source, target))
