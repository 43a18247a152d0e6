"""samkd demo: the whole job on the built-in phantom."""

from pathlib import Path

from ..configs.load import load_config
from ..distill.study import study
from ..teachers.train import teach
from .data import open_dataset
from .deploy import deploy
from .report.report import Comparison, report


def demo(runs: Path, overrides: list[str]) -> Comparison:
    """Teach, distil (with the control), deploy and report; everything is written into `runs`."""
    config = load_config("phantom", overrides)
    dataset = open_dataset(config, None, runs=runs)
    teacher = teach(config, dataset, runs=runs)
    results = study(config, dataset, teachers=[(teacher, 1.0)], lambdas=[config.lambda_], runs=runs)
    student = results.students[config.lambda_]
    package = deploy(student, target="openvino", data=None, out=None, runs=runs, overrides=overrides)
    return report([package], out=runs / "report.html", data=None, runs=runs)
