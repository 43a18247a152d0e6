"""Train on two machines that are none: two network namespaces with an address each, joined by a virtual cable.

    python benchmarks/two_machines.py

`samkd teach --nodes 2` starts in both, with MASTER_ADDR and NODE_RANK as on a cluster without a scheduler, on the
built-in phantom. Its weights, losses and scores must be those of `--devices 2` on this machine, to the last bit. Then
it is begun again, and the second process is killed; and again, and the cable is pulled, so that nothing tells the
first that the second is gone. Each time what is left must end within a minute with one line that says why, and the
next start goes on from there. Needs root and Linux's `ip`.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

from helpers.killed_runs import SETTINGS, result

MACHINES = ("samkd-a", "samkd-b")
CABLE = ("samkd-va", "samkd-vb")
ADDRESSES = ("10.77.0.1", "10.77.0.2")
PORT = "29577"
MINUTE = 60.0
STEPS = ["teacher.training.steps=40", "teacher.training.validate_every=5"]


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


@contextmanager
def machines() -> Iterator[None]:
    """Both namespaces, with the cable between them."""
    try:
        for name in MACHINES:
            ip("netns", "add", name)
        ip("link", "add", CABLE[0], "type", "veth", "peer", "name", CABLE[1])
        for name, end, address in zip(MACHINES, CABLE, ADDRESSES, strict=True):
            ip("link", "set", end, "netns", name)
            ip("-n", name, "address", "add", f"{address}/24", "dev", end)
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", end, "up")
        yield
    finally:
        for name in MACHINES:
            subprocess.run(["ip", "netns", "del", name], check=False, stderr=subprocess.DEVNULL)


def teach(runs: Path, *options: str) -> list[str]:
    words = [sys.executable, "-m", "samkd", "teach", "-c", "phantom", "--runs", str(runs), *options]
    return words + [word for setting in (*SETTINGS, *STEPS) for word in ("--set", setting)]


def begin(runs: Path) -> list[subprocess.Popen[str]]:
    """The same command on both machines."""
    processes = []
    for number, (name, end) in enumerate(zip(MACHINES, CABLE, strict=True)):
        variables = {"MASTER_ADDR": ADDRESSES[0], "MASTER_PORT": PORT, "NODE_RANK": str(number)}
        variables |= {"GLOO_SOCKET_IFNAME": end, "OMP_NUM_THREADS": "1"}
        words = ["ip", "netns", "exec", name, *teach(runs, "--nodes", "2")]
        processes.append(subprocess.Popen(words, env=os.environ | variables, stderr=subprocess.PIPE, text=True))
    return processes


def interrupted(runs: Path, what: str) -> None:
    """Begin, or go on, and lose the second machine some steps later."""
    before = steps(runs)
    processes = begin(runs)
    while steps(runs) < before + 6:
        time.sleep(0.1)
        assert all(process.poll() is None for process in processes), "it ended too early"
    if what == "killed":
        processes[1].send_signal(signal.SIGKILL)
    else:
        ip("-n", MACHINES[0], "link", "set", CABLE[0], "down")
    lost = time.monotonic()
    for process in processes:
        words = process.communicate(timeout=MINUTE)[1]
        told = [line for line in words.splitlines() if line.startswith("error:")]
        if process.returncode != -signal.SIGKILL:
            assert process.returncode == 1 and len(told) == 1, (process.returncode, words)
            print(f"{what}: it ended {time.monotonic() - lost:.0f} s later with: {told[0]}", flush=True)
    if what != "killed":
        ip("-n", MACHINES[0], "link", "set", CABLE[0], "up")


def steps(runs: Path) -> int:
    logs = list(runs.glob("teach-*/log.jsonl"))
    return len(logs[0].read_text().splitlines()) if logs else 0


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with tempfile.TemporaryDirectory() as name:
        one, two = Path(name) / "one", Path(name) / "two"
        subprocess.run(teach(one, "--devices", "2"), check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        shutil.copytree(one / "data", two / "data")
        with machines():
            interrupted(two, "killed")
            interrupted(two, "the cable pulled")
            for process in begin(two):
                assert process.wait(timeout=600) == 0
        assert result(two) == result(one)
    print("two machines, interrupted twice, ended with the weights, losses and scores of two devices of one machine")


if __name__ == "__main__":
    main()
