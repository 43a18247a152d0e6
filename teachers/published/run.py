"""The run of a published model as it is: a folder like that of any teacher, in which nothing was trained."""

from pathlib import Path

from ...errors import UsageError
from ...training.checkpoint import save_weights
from ...training.job import TrainingJob
from ...training.metrics import RunMetrics
from ...training.run import Run
from ...training.trainer import load_pretrained, report_pretrained
from ...volumes.files import file_digest


def record_published(job: TrainingJob, *, runs: Path, run: Path | None = None) -> Run:
    """Check that the job's published file is its network's, key by key, and leave the run folder.

    The folder holds no weights of the file, only where it lay and its sha256. Raises UsageError without a file or with
    a run to start from, BadInputError for a file that does not fit.
    """
    if job.pretrained is None or job.objective.init_run is not None:
        raise UsageError("the teacher 'published' is a published model as it is: give its file with --weights alone")
    network = job.build()
    report = load_pretrained(network, job.pretrained, name=job.network.name)
    network.freeze_pretrained()
    run_config = job.run_config()
    folder = Run.create(run or runs / job.folder_name(run_config), run_config)
    if folder.finished:
        return folder
    report_pretrained(folder, job.pretrained, report)
    folder.write_json("splits.json", job.split.names())
    save_weights(network, folder.weights, pretrained=file_digest(job.pretrained))
    parameters = sum(parameter.numel() for parameter in network.parameters())
    metrics = RunMetrics(
        steps=0,
        seconds=0.0,
        skipped_steps=0,
        parameters=parameters,
        trained_parameters=0,
        validation=None,
        test=None,
    )
    folder.write_json("metrics.json", metrics.to_json())
    return folder
