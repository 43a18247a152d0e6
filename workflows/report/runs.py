"""What the runs behind a package have to say: who they are, what they cost, and their curves."""

from pathlib import Path

from ...deploy.runtime.manifest import Manifest
from ...errors import BadInputError
from ...training.run import Run, control_of


def origin(package: Path, manifest: Manifest, runs: Path) -> Path:
    """The folder in `runs` of the run that a package was made from. Raises BadInputError when it names none."""
    if "run" not in manifest.provenance:
        raise BadInputError(f"{package}: its manifest names no run (provenance.run); nothing to compare with")
    return runs / str(manifest.provenance["run"])


def runs_before(student: Run, runs: Path) -> dict[str, Run]:
    """The runs behind a package by their title in the report: teachers, the control if there is one, the student."""
    stages: dict[str, Run] = {}
    if student.stage == "distill":
        teachers = [teacher for teacher in student.config.objective.teachers if not teacher.predictions]
        for number, teacher in enumerate(teachers, start=1):
            stages["teacher" if len(teachers) == 1 else f"teacher {number}"] = Run.read(runs / teacher.run)
    if control := control_of(student, runs):
        stages["student without teacher"] = control
    if student.stage == "distill":
        stages["student with teacher"] = student
    return stages


def training_cost(run: Run) -> str:
    """The name of a run, its steps, seconds and parameters."""
    metrics = run.metrics()
    return (
        f"{run.path.name}, {metrics.steps} steps, {metrics.seconds:.0f} s, {metrics.parameters / 1e6:.2f} M parameters"
    )


def points(run: Run, key: str) -> list[tuple[float, float]]:
    """(step, value) of every entry of a run's log that holds `key`."""
    return [(entry["step"], entry[key]) for entry in run.history() if key in entry]


def smoothed(run: Run, key: str, window: int = 10) -> list[tuple[float, float]]:
    """Mean over ``window`` steps, one point per window, so that a curve can be read."""
    raw = points(run, key)
    chunks = [raw[start : start + window] for start in range(0, len(raw), window)]
    return [(chunk[-1][0], sum(value for _, value in chunk) / len(chunk)) for chunk in chunks]
