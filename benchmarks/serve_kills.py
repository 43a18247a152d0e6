"""Kill `serve` again and again while studies come in: how many are lost, how many masks are sent twice.

    python benchmarks/serve_kills.py --ct SERIES --kills 30 --away 60

A small package is built; a CT (the series of a folder, or one that is made here) is sent over and over, each time as a
study of its own, by DCMTK's storescu, which tries again when it fails, as a scanner does. The server is killed with
SIGKILL at random moments and started again at once; in the middle Orthanc, the PACS, is away. At the end every study
that storescu was told is received must have one DICOM-SEG in Orthanc, that refers to all of its slices. Needs dcmtk,
orthanc and samkd[serve].
"""

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

import pydicom
from helpers.dicom_series import write_series
from helpers.packages import Levels, deploy, make_scan, patches
from helpers.served import Orthanc, Server, free_port, states
from pydicom.uid import JPEG2000Lossless, generate_uid

from samkd.volumes import Plan

PLAN = Plan(intensity=({"rule": "window", "low": 0, "high": 100},), patch=(16, 64, 64), overlap=0.25)
MOST_TRIES = 200  # of one study
PROPOSE = {JPEG2000Lossless: ["-xv"]}  # what storescu must be told to send compressed objects as they are


class Scanner(threading.Thread):
    """Sends one study after another until it is told to end; `received` are those that were acknowledged whole."""

    def __init__(self, slices: list[Path], port: int, folder: Path):
        super().__init__(daemon=True)
        self._slices, self._port, self._folder = slices, port, folder
        self.received: list[str] = []
        self.transfers = 0
        self.ended = threading.Event()

    def run(self) -> None:
        while not self.ended.is_set():
            study, folder = self._new_study()
            syntax = pydicom.dcmread(self._slices[0], stop_before_pixels=True).file_meta.TransferSyntaxUID
            words = ["storescu", *PROPOSE.get(syntax, []), "-aet", "CT", "-aec", "SAMKD", "+sd", "127.0.0.1"]
            for _ in range(MOST_TRIES):
                self.transfers += 1
                done = subprocess.run(
                    [*words, str(self._port), folder], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False
                ).returncode
                if done == 0:
                    break
                time.sleep(0.2)
            else:
                print(f"storescu failed {MOST_TRIES} times in a row; the rest is left out", file=sys.stderr)
                return
            self.received.append(study)
            shutil.rmtree(folder)
            self.ended.wait(3.0)

    def _new_study(self) -> tuple[str, Path]:
        study, series, frame = generate_uid(), generate_uid(), generate_uid()
        folder = self._folder / study
        folder.mkdir(parents=True)
        for number, file in enumerate(self._slices):
            dataset = pydicom.dcmread(file)
            dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = study, series, frame
            dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID  # an anonymiser may have blanked it
            dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
            dataset.save_as(folder / f"{number}.dcm")
        return study, folder


def series_in(folder: Path | None, work: Path) -> list[Path]:
    if folder is not None:
        return sorted(path for path in folder.iterdir() if path.is_file())
    return write_series(work / "ct", make_scan(3).array[0].astype(np.int16) + 1024, spacing=(2.0, 1.5, 1.4))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ct", type=Path, help="a folder with the files of one CT series (default: one is made)")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--away", type=float, default=60, help="seconds for which the PACS is away")
    parser.add_argument("--most", type=float, default=8, help="the longest life of a server, in seconds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=Path, help="where to leave the log of the server")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="serve-kills-") as name:
        work = Path(name)
        slices = series_in(args.ct, work)
        calibration = [np.tile(patch, (1, 1, 4, 4)) for patch in patches(8)]
        package = deploy(Levels(), work, plan=PLAN, calibration=calibration)
        pacs, port = Orthanc(work / "orthanc"), free_port()
        words = ["--dicom", f"SAMKD:{port}", "--send", f"ORTHANC@127.0.0.1:{pacs.dicom}", "--spool", work / "spool"]
        words += ["--quiet", "2", "--reserve", "100M", "--threads", "1"]
        server = Server(package, *words, log=work / "log.txt")
        scanner = Scanner(slices, port, work / "studies")
        pacs.start()
        server.start()
        scanner.start()
        hits = kill_again_and_again(args, server, pacs, work)
        scanner.ended.set()
        scanner.join()
        wait_for_all(scanner, work)
        masks = [(tags["StudyInstanceUID"], referenced(tags)) for tags in pacs.objects()]
        server.kill()
        pacs.stop()
        if args.log:
            shutil.copyfile(work / "log.txt", args.log)
    report(args, scanner, masks, hits, slices=len(slices), seconds=time.monotonic() - began)


def kill_again_and_again(args: argparse.Namespace, server: Server, pacs: Orthanc, work: Path) -> Counter[str]:
    """Kill and start the server, with the PACS away in the middle; how many kills met an unfinished job, by state."""
    rng, hits, away_until = random.Random(args.seed), Counter(), 0.0
    for number in range(args.kills):
        if number == args.kills // 2:
            pacs.stop()
            away_until = time.monotonic() + args.away
        if away_until and time.monotonic() > away_until:
            pacs.start()
            away_until = 0.0
        time.sleep(rng.uniform(0, args.most))
        server.kill()
        hits.update(set(states(work / "spool")) - {"sent"})
        hits["arriving"] += any((work / "spool" / "incoming").rglob("*.dcm"))
        server.start()
    if away_until:
        time.sleep(max(0.0, away_until - time.monotonic()))
        pacs.start()
    return hits


def wait_for_all(scanner: Scanner, work: Path) -> None:
    """Wait, for at most five minutes, until every study has been sent; then a little, for what comes too much."""
    end = time.monotonic() + 300
    while time.monotonic() < end:
        jobs = states(work / "spool")
        if len(jobs) >= len(scanner.received) and set(jobs) == {"sent"}:
            break
        time.sleep(1)
    time.sleep(5)


def referenced(tags: dict[str, Any]) -> int:
    """How many slices a DICOM-SEG refers to."""
    return len(tags["ReferencedSeriesSequence"][0]["ReferencedInstanceSequence"])


def report(
    args: argparse.Namespace,
    scanner: Scanner,
    masks: list[tuple[str, int]],
    hits: Counter[str],
    *,
    slices: int,
    seconds: float,
) -> None:
    """The table."""
    studies = [study for study, _ in masks]
    rows = {
        "SIGKILLs": args.kills,
        "of them while a study was arriving": hits["arriving"],
        "of them while a scan was waiting or being segmented": hits["received"],
        "of them while a mask was waiting or being sent": hits["segmented"],
        "seconds the PACS was away": f"{args.away:.0f}",
        "studies acknowledged": len(scanner.received),
        "transfers that took (broken ones were repeated)": scanner.transfers,
        "masks in the PACS": len(masks),
        "studies lost": len(set(scanner.received) - set(studies)),
        "studies with more than one mask": len({study for study in studies if studies.count(study) > 1}),
        "masks that miss slices": sum(count != slices for _, count in masks),
        "seconds": f"{seconds:.0f}",
    }
    print("| | |\n|---|---:|")
    for name, value in rows.items():
        print(f"| {name} | {value} |")


if __name__ == "__main__":
    main()
