"""Attack samkd: damaged files of every format, hostile packages and runs, kills, full disks; and a table of what held.

    python benchmarks/attack.py                              # twenty minutes on two cores that do nothing else
    python benchmarks/attack.py --scale 0.02                 # four minutes
    python benchmarks/attack.py --only kills weights fuzz    # some of them

Everything attacked is made here, from the built-in phantom, and every draw comes from `--seed`. Exit code 1, with a
line for each, if anything ended in a traceback or hung for 20 seconds, if a change was accepted that a checksum could
catch, or if a run that was killed did not end with the weights of one that was not.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from attacks import fuzz, interruptions, packages, runs
from attacks.attempts import FAULTS, Tally, table, warm_up
from attacks.interruptions import KILLS
from attacks.material import Material, make

Part = Callable[[int], int]  # from the full number of attempts to that of this run
ATTACKS: dict[str, Callable[[Material, Path, int, Part], list[Tally]]] = {
    "kills": lambda made, work, seed, part: [interruptions.kills(made, work, count=part(100), seed=seed)],
    "disks": lambda made, work, seed, part: [interruptions.full_disks(made, work, levels=part(8), seed=seed)],
    "damaged": lambda made, work, seed, part: [packages.damaged(made, work, count=part(100), seed=seed)],
    "resealed": lambda made, work, seed, part: [packages.resealed(made, work, count=part(150), seed=seed)],
    "zips": lambda made, work, seed, part: [packages.zipped(made, work, count=part(60), seed=seed)],
    "code": lambda made, work, seed, part: [packages.executing(made, work)],
    "weights": lambda made, work, seed, part: [runs.weights(made, work, count=part(40), seed=seed)],
    "states": lambda made, work, seed, part: [runs.states(made, work, count=part(30), seed=seed)],
    "configs": lambda made, work, seed, part: [runs.records(made, work, count=part(80), seed=seed)],
    "places": lambda made, work, seed, part: [runs.places(made, work)],
    "fuzz": lambda made, work, seed, part: [fuzz.fuzz(one, count=part(200), seed=seed) for one in fuzz.formats(made)],
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0, help="part of the full number of attempts")
    parser.add_argument("--only", nargs="+", choices=ATTACKS, default=list(ATTACKS), help="these attacks")
    parser.add_argument("--work", type=Path, help="keep what is made here, and use it again")
    options = parser.parse_args()

    def part(count: int) -> int:
        return max(2, round(count * options.scale))

    started = time.perf_counter()
    tallies: list[Tally] = []
    with tempfile.TemporaryDirectory() as name:
        folder = options.work or Path(name)
        (folder / "work").mkdir(parents=True, exist_ok=True)
        warm_up()
        material = make(folder / "material")
        for attack in options.only:
            tallies += ATTACKS[attack](material, folder / "work", options.seed, part)
            print(f"{attack} done after {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    print(table(tallies))
    faults = {fault: sum(tally.counts[fault] for tally in tallies) for fault in FAULTS}
    attempts = sum(sum(tally.counts.values()) for tally in tallies)
    resumed, lost = (sum(tally.counts[name] for tally in tallies if tally.kind == KILLS) for name in ("held", "lost"))
    print(f"\n{attempts} attempts, seed {options.seed}, {time.perf_counter() - started:.0f} s")
    print(f"{faults['traceback']} tracebacks, {faults['hang']} hangs over 20 s")
    print(f"{faults['silent']} silent acceptances that a sum could catch")
    print(f"{resumed} of {resumed + lost} kills resumed with the same weights, on two threads")
    for tally in tallies:
        for line in tally.details:
            print(line)
    return int(any(faults.values()))


if __name__ == "__main__":
    sys.exit(main())
