"""Kill `teach` and `distill` again and again, and let their disk run full: how many end as if nothing had happened.

    python benchmarks/train_kills.py --kills 100 --disks 20

A small teacher (MA-SAM, 8 steps, moving average) and a small student with its control (SegResNet, 4 steps each) learn
on the built-in phantom, each by one process and by two that train together. SIGKILL comes at a uniformly random moment
of the time that the whole takes, from the first scan that is prepared to the last that is scored, to one of the
processes or to all; the others must end by themselves within a minute (before they have met, all are killed, as their
launcher would do). The same work is begun again until it ends,
however often it was killed on the way, and its weights, losses and scores must be those of a work that was never
killed, to the last bit. On a tmpfs of a random size, too small for the whole, a work must end with exit code 3, and be
finished, with the same result, when there is more. Processes are forked from one that has loaded the libraries, so
that a kill costs no import. Disks need root.
"""

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from subprocess import CalledProcessError

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

from helpers.killed_runs import FullDisks, KilledRuns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--disks", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin nothing new after so many")
    args = parser.parse_args()

    began = time.monotonic()

    def in_time() -> bool:
        return time.monotonic() - began < 60 * args.minutes

    with tempfile.TemporaryDirectory() as name:
        runs = KilledRuns(Path(name), seed=args.seed)
        for work in runs.works:
            print(f"{work}: {runs.seconds[work]:.1f} s when nothing is killed", flush=True)
        moments: Counter[str] = Counter()
        for number in range(args.kills):
            if not in_time():
                break
            work = runs.works[number % len(runs.works)]
            moments[runs.kill(work)] += 1
            if number % 10 == 9:
                print(f"{number + 1} kills", flush=True)
        for work in runs.works:
            runs.finish(work)
            print(f"{work}: killed {runs.kills[work]} times, {runs.finished[work]} works ended, all with the same bits")
        print(f"{moments.total()} kills, in {dict(moments)}", flush=True)
        full: Counter[str] = Counter()
        try:
            disks = FullDisks(runs)
            while full.total() < args.disks and in_time():
                for work in runs.works:
                    if at := disks.fill(work):
                        full[at] += 1
            print(f"{full.total()} full disks, in {dict(full)}, all finished with the same bits")
        except CalledProcessError as error:
            print(f"no disks were filled: {error.stderr.decode().strip()}")


if __name__ == "__main__":
    main()
