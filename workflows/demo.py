"""samkd demo: the whole job on the built-in phantom."""

from pathlib import Path

from ..configs.load import load_recipe
from ..distill.study import study
from ..teachers.train import teach
from .data import open_dataset
from .deploy import deploy
from .report import Comparison, report


def demo(runs: Path, overrides: list[str]) -> Comparison:
    """Teach, distil (with the control), deploy and report; everything is written into `runs`."""
    recipe = load_recipe("phantom", overrides)
    dataset = open_dataset(recipe, None, runs=runs)
    teacher = teach(recipe, dataset, runs=runs)
    results = study(recipe, dataset, teachers=[(teacher, 1.0)], lambdas=[recipe.lambda_], runs=runs)
    student = results.students[recipe.lambda_]
    package = deploy(student, target="openvino", data=None, out=None, runs=runs, overrides=overrides)
    return report(package, out=runs / "report.html", data=None, runs=runs)
