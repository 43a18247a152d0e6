"""Kills and full disks: what was done stays whole, and the same command goes on to the same result."""

import hashlib
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from .attempts import KILLED, TRAINING, Outcome, Tally, judge, samkd
from .material import Material, distill, teach
from .packages import _scan

THREADS = 2
KILLS = "kills: teach and distill"


def digest_of(run: Path) -> str:
    """sha256 over the names and values of all weights of a finished run."""
    from safetensors.torch import load_file

    summed = hashlib.sha256()
    for path in sorted(run.glob("*.safetensors")):
        for name, tensor in sorted(load_file(path).items()):
            summed.update(name.encode())
            summed.update(tensor.numpy().tobytes())
    return summed.hexdigest()


def kills(material: Material, work: Path, *, count: int, seed: int) -> Tally:
    """`count` kills of teach and distill on two threads, at random moments, in chains of up to five: each chain must
    end with the weights of a run that nobody stopped.
    """
    tally, rng = Tally(KILLS), random.Random(f"{seed} kills")
    stages: dict[str, Callable[..., Outcome]] = {
        "teach": lambda run, **how: teach(material, run, threads=THREADS, **how),
        "distill": lambda run, **how: distill(material, run, work / "runs", threads=THREADS, **how),
    }
    whole, seconds = {}, {}
    for name, start in stages.items():
        run = _cleared(work, f"{name}-whole")
        outcome = start(run)
        assert outcome.code == 0, outcome.output
        whole[name], seconds[name] = digest_of(run), outcome.seconds
    while sum(tally.counts[result] for result in ("held", "lost", "traceback", "hang")) < count:
        name = rng.choice(list(stages))
        left = count - tally.counts["held"] - tally.counts["lost"]
        delays = [rng.uniform(0.02, 1.0) * seconds[name] for _ in range(min(5, left))]
        _chain(stages[name], _cleared(work, f"{name}-killed"), delays, whole[name], tally, name)
    return tally


def _chain(start: Callable[..., Outcome], run: Path, delays: list[float], whole: str, tally: Tally, name: str) -> None:
    """Kill a command after each of the delays, then let it end; every kill is held if it ends with the weights `whole`
    (one that came too late, when the command had ended, counts as well: the command is then run again).
    """
    for delay in delays:
        outcome = start(run, kill_after=delay)
        if outcome.code not in (KILLED, 0):
            judge(tally, outcome, f"{name}, resumed after a kill", must_refuse=True)
    outcome = start(run)
    right = outcome.code == 0 and digest_of(run) == whole
    for _ in delays:
        tally.add("held" if right else "lost", f"{name}: exit {outcome.code}, {outcome.output.strip()[-200:]}")


def _cleared(work: Path, name: str) -> Path:
    """A run folder that is not there, and nothing of the one before it."""
    shutil.rmtree(work / name, ignore_errors=True)
    shutil.rmtree(work / "runs", ignore_errors=True)
    return work / name


def full_disks(material: Material, work: Path, *, levels: int, seed: int) -> Tally:
    """No file may grow beyond a size, as on a full disk: one clear error, nothing half-written, and the same command
    goes on once there is room.
    """
    tally, rng = Tally("full disks"), random.Random(f"{seed} disks")

    def deploy(run: Path, **how) -> Outcome:
        return samkd(
            *("deploy", material.student, "--data", material.data, "--out", run, "--precision", "fp32"),
            *("--max-drop", "1"),
            seconds=TRAINING,
            **how,
        )

    commands: dict[str, Callable[..., Outcome]] = {
        "teach": lambda run, **how: teach(material, run, **how),
        "distill": lambda run, **how: distill(material, run, work / "runs", **how),
        "deploy": deploy,
        "predict": lambda run, **how: samkd(
            "predict", material.package, "-i", _scan(material), "-o", run / "mask.nii.gz", "--threads", 1, **how
        ),
        "convert": lambda run, **how: samkd("convert", material.data, run, seconds=TRAINING, **how),
    }
    for name, command in commands.items():
        for _ in range(levels):
            target = _cleared(work, f"{name}-full")
            if name == "predict":
                target.mkdir()
            limit = int(10 ** rng.uniform(1.5, 7))
            outcome = command(target, file_bytes=limit)
            judge(tally, outcome, f"{name}, files up to {limit} bytes")
            if outcome.code == 0:
                continue
            again = command(target)
            if again.code != 0:
                tally.add("lost", f"{name}, with room again: {again.output.strip()[-200:]}")
    return tally
