"""Attack samkd: damaged files of every format, hostile packages and runs, kills, full disks; and a table of what held.

    python benchmarks/attack.py                    # some ten minutes on two cores
    python benchmarks/attack.py --scale 0.02       # a minute: what the tests run

Everything attacked is made here, from the built-in phantom, and every draw comes from `--seed`. Exit code 1, with a
line for each, if anything ended in a traceback or hung for 20 seconds, if a change was accepted that a checksum could
catch, or if a run that was killed did not end with the weights of one that was not.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from attacks import fuzz, interruptions, packages, runs
from attacks.attempts import FAULTS, Tally, table, warm_up
from attacks.material import make


def attack(folder: Path, *, seed: int, scale: float) -> list[Tally]:
    """Make what is attacked in `folder`, and attack it. `scale` is the part of the full number of attempts."""

    def part(count: int) -> int:
        return max(2, round(count * scale))

    warm_up()
    material = make(folder / "material")
    work = folder / "work"
    work.mkdir(exist_ok=True)
    tallies = [
        interruptions.kills(material, work, count=part(100), seed=seed),
        interruptions.full_disks(material, work, levels=part(8), seed=seed),
        packages.damaged(material, work, count=part(100), seed=seed),
        packages.resealed(material, work, count=part(150), seed=seed),
        packages.zipped(material, work, count=part(60), seed=seed),
        packages.executing(material, work),
        runs.weights(material, work, count=part(40), seed=seed),
        runs.states(material, work, count=part(30), seed=seed),
        runs.records(material, work, count=part(80), seed=seed),
        runs.places(material, work),
    ]
    return tallies + [fuzz.fuzz(each, count=part(200), seed=seed) for each in fuzz.formats(material)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0, help="part of the full number of attempts")
    parser.add_argument("--work", type=Path, help="keep what is made here, and use it again")
    options = parser.parse_args()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = options.work or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        tallies = attack(folder, seed=options.seed, scale=options.scale)
    print(table(tallies))
    faults = {fault: sum(tally.counts[fault] for tally in tallies) for fault in FAULTS}
    attempts = sum(sum(tally.counts.values()) for tally in tallies)
    resumed = tallies[0].counts["held"]
    print(f"\n{attempts} attempts, seed {options.seed}, {time.perf_counter() - started:.0f} s")
    print(f"{faults['traceback']} tracebacks, {faults['hang']} hangs over 20 s")
    print(f"{faults['silent']} silent acceptances that a sum could catch")
    print(f"{resumed} of {resumed + tallies[0].counts['lost']} kills resumed with the same weights, on two threads")
    for tally in tallies:
        for line in tally.details:
            print(line)
    return int(any(faults.values()))


if __name__ == "__main__":
    sys.exit(main())
