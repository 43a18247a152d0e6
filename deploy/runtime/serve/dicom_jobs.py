"""From a study that lies in the spool to its jobs. Nothing of a header is logged but UIDs, and DICOM's own words."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from ....errors import SamkdError
from ....volumes.io.dicom.study import StudySeries, study_series
from ....volumes.io.scans import Source, modality
from ..package import Package
from .spool import FAILED, Job, job_id
from .worker import fits

DOOR = "dicom"  # by which the spool knows whose a job is
_LOG = logging.getLogger("samkd.serve")


def jobs_of(taken: Path, packages: Mapping[str, Package]) -> list[tuple[Job, tuple[Path, ...]]]:
    """The jobs of a taken study with their files: one for each series and package that segments it, or one that has
    failed. Packages go by their digests."""
    try:
        return [(_job(digest, one), one.files) for one in study_series(taken) for digest in _fitting(one, packages)]
    except SamkdError as error:
        return [_unusable(taken, str(error))]
    except Exception as error:  # its words may be those of a header
        return [_unusable(taken, f"{type(error).__name__} in samkd, a fault of its own")]


def _fitting(series: StudySeries, packages: Mapping[str, Package]) -> list[str]:
    """The digests of the packages that segment a series; one that none does is named in the log."""
    word = modality(Source(series.uid, series.files)) if series.files else None
    fitting = [digest for digest, package in packages.items() if word is not None and fits(package, word)]
    if not fitting:
        _LOG.info("series %s: left alone (%s)", series.uid, series.kind or word or "of no modality of scans")
    return fitting


def _job(digest: str, series: StudySeries) -> Job:
    names = tuple(file.name for file in series.files)
    return Job(
        id=job_id(DOOR, digest, *sorted(names)),
        door=DOOR,
        package=digest,
        name=f"series {series.uid}",
        scan=names,
        result="mask.dcm",
    )


def _unusable(taken: Path, error: str) -> tuple[Job, tuple[Path, ...]]:
    """The job of a study that cannot be told apart into series: it has failed, and its files are kept."""
    files = tuple(sorted(taken.glob("*.dcm")))
    names = tuple(file.name for file in files)
    _LOG.error("error: a study of %d files: %s", len(files), error)
    id = job_id(DOOR, *names)
    name = f"study in {id}"
    job = Job(id=id, door=DOOR, package="", name=name, scan=names, result="mask.dcm", state=FAILED, error=error)
    return job, files
