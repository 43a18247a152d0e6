"""Hostile runs: damaged weights, states, caches and records, strange values, links and pipes in their places."""

import os
import random
from pathlib import Path

import yaml

from .attempts import Tally, copied, judge, samkd
from .damage import flipped, strange
from .material import Material, distill
from .packages import _scan


def weights(material: Material, work: Path, *, count: int, seed: int) -> Tally:
    """One bit of the weights flipped: refused by their checksum. Not a number: refused."""
    import torch
    from safetensors.torch import load_file, save_file

    tally, rng = Tally("run: weights"), random.Random(f"{seed} weights")
    for number in range(count + 2):
        run = copied(material.student, work / "run")
        path = next(run.glob("*.safetensors"))
        if number < count:
            path.write_bytes(flipped(path.read_bytes(), rng))
            what = f"bit {number}"
        else:
            state = load_file(path)
            name = next(name for name, tensor in state.items() if tensor.is_floating_point())
            state[name] = torch.full_like(state[name], float("nan") if number == count else float("inf"))
            save_file(state, path)
            what = "NaN" if number == count else "infinite"
        outcome = samkd("predict", run, "-i", _scan(material), "-o", work / "mask.nii.gz", "--threads", 1)
        judge(tally, outcome, what, must_refuse=True)
    return tally


def states(material: Material, work: Path, *, count: int, seed: int) -> Tally:
    """A training that was stopped, one bit of its state flipped: refused, and not trained on."""
    tally, rng = Tally("run: state and cache"), random.Random(f"{seed} states")
    stopped = work / "stopped"
    runs = work / "stopped-runs"
    for delay in (3.0, 4.0, 5.0, 6.0, 8.0):
        copied(material.student, stopped)  # so that the folder can be removed in one way
        _remove(stopped)
        distill(material, stopped, runs, kill_after=delay)
        if _states(stopped):
            break
    if not _states(stopped):
        return tally
    for number in range(count):
        run = copied(stopped, work / "run")
        path = rng.choice(_states(run))
        path.write_bytes(flipped(path.read_bytes(), rng))
        judge(tally, distill(material, run, runs), f"bit {number} of {path.name}", must_refuse=True)
    return tally


def records(material: Material, work: Path, *, count: int, seed: int) -> Tally:
    """A config.yaml of a run with a strange value: refused, or harmless."""
    tally, rng = Tally("run: config.yaml"), random.Random(f"{seed} records")
    for number in range(count):
        run = copied(material.student, work / "run")
        path = run / "config.yaml"
        values, what = strange(yaml.safe_load(path.read_text()), rng)
        try:
            path.write_text(yaml.safe_dump(values))
        except UnicodeEncodeError:
            continue
        if number % 2:
            outcome = samkd("predict", run, "-i", _scan(material), "-o", work / "mask.nii.gz", "--threads", 1)
        else:
            outcome = samkd("evaluate", run, "--data", material.data, seconds=60)
        judge(tally, outcome, what)
    return tally


def places(material: Material, work: Path) -> Tally:
    """Pipes, devices, links and folders where files belong: refused at once."""
    tally = Tally("run: pipes, devices, links")
    names = [path.name for path in material.student.iterdir() if path.is_file()]
    for name in names:
        for kind in ("pipe", "device", "folder", "nothing there"):
            run = copied(material.student, work / "run")
            path = run / name
            path.unlink()
            if kind == "pipe":
                os.mkfifo(path)
            elif kind == "device":
                path.symlink_to("/dev/zero")
            elif kind == "folder":
                path.mkdir()
            for arguments in (
                ("predict", run, "-i", _scan(material), "-o", work / "mask.nii.gz", "--threads", 1),
                ("evaluate", run, "--data", material.data),
            ):
                judge(tally, samkd(*arguments, seconds=60), f"{name} is a {kind}, {arguments[0]}")
    return tally


def _states(run: Path) -> list[Path]:
    folder = run / "state"
    return sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []


def _remove(path: Path) -> None:
    import shutil

    shutil.rmtree(path, ignore_errors=True)
