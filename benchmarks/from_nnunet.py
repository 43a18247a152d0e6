"""An nnU-Net v2 teaches swinunetr-tiny on the Decathlon's hippocampus (Task04) through the files it wrote.

    python -m venv NNUNET && NNUNET/bin/pip install nnunetv2
    python benchmarks/from_nnunet.py --nnunet NNUNET --data DIR --work runs/from-nnunet

The student has the masks of 18 training cases; nnU-Net learns from those of the 162 others, for minutes instead of
days (--epochs of 25 iterations of 2 patches), as if they were another hospital's, and predicts all 180 scans with
--save_probabilities. The folder it writes is the teacher. Printed are nnU-Net, the control and the student on the 40
test cases. What is there already is not done twice.
"""

import argparse
import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from verbs import samkd, settings

from samkd.distill.paired_comparison import paired_difference
from samkd.evaluation.records import CaseScores
from samkd.training.run import Run
from samkd.volumes.datasets.registry import Case, Dataset
from samkd.workflows.data import config_for, open_dataset
from samkd.workflows.evaluate import evaluate

NAME, CONFIGURATION, TRAINER = "Dataset004_Hippocampus", "3d_fullres", "BriefTrainer"


def nnunet(options: argparse.Namespace, command: str, *arguments: object) -> None:
    """One of nnU-Net's commands, printed first, from its own environment, on one thread of the CPU."""
    folders = {f"nnUNet_{part}": str(options.work.absolute() / part) for part in ("raw", "preprocessed", "results")}
    trainer = {"nnUNet_extTrainer": str(Path(__file__).parent.absolute() / "nnunet_trainer")}
    brief = {"BRIEF_EPOCHS": str(options.epochs), "OMP_NUM_THREADS": "1", "nnUNet_n_proc_DA": "1"}
    print(command, *arguments, flush=True)
    subprocess.run(
        [options.nnunet / "bin" / command, *map(str, arguments)],
        check=True,
        env={**os.environ, **folders, **trainer, **brief},
    )


def copy_scans(cases: Sequence[Case], folder: Path) -> Path:
    """The scans in a folder under the names that nnU-Net wants, CASE_0000.nii.gz."""
    folder.mkdir(parents=True, exist_ok=True)
    for case in cases:
        shutil.copyfile(case.image.files[0], folder / f"{case.name}_0000.nii.gz")
    return folder


def write_raw(dataset: Dataset, masks: Mapping[str, Path], folder: Path) -> None:
    """nnU-Net's raw dataset of the cases whose masks the student does not have."""
    cases = [case for case in dataset.training if case.label is None]
    copy_scans(cases, folder / "imagesTr")
    (folder / "labelsTr").mkdir(exist_ok=True)
    for case in cases:
        shutil.copyfile(masks[case.name], folder / "labelsTr" / f"{case.name}.nii.gz")
    content = {
        "channel_names": {"0": "MRI"},
        "labels": {name: value for value, name in dataset.labels.items()},
        "numTraining": len(cases),
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(content))


def train_nnunet(options: argparse.Namespace) -> None:
    plans = options.work / "preprocessed" / NAME / "nnUNetPlans.json"
    if not plans.exists():
        nnunet(options, "nnUNetv2_plan_and_preprocess", "-d", 4, "-c", CONFIGURATION, "-npfp", 1, "-np", 1)
        content = json.loads(plans.read_text())
        content["configurations"][CONFIGURATION]["batch_size"] = 2  # it plans 9, for a GPU
        plans.write_text(json.dumps(content, indent=1))
    if not list((options.work / "results").rglob("checkpoint_final.pth")):
        nnunet(options, "nnUNetv2_train", 4, CONFIGURATION, "all", "-tr", TRAINER, "-device", "cpu")


def predict(options: argparse.Namespace, cases: Sequence[Case], name: str, *more: str) -> Path:
    """nnU-Net's predictions of scans, in the folder of that name, without its mirrored copies."""
    out = options.work / name
    if len(list(out.glob("*.nii.gz"))) < len(cases):
        scans = copy_scans(cases, options.work / f"scans-{name}")
        model = ("-d", 4, "-c", CONFIGURATION, "-f", "all", "-tr", TRAINER)
        few = ("-device", "cpu", "--disable_tta", "-npp", 1, "-nps", 1)
        nnunet(options, "nnUNetv2_predict", "-i", scans, "-o", out, *model, *few, *more)
    return out


def student(options: argparse.Namespace, seed: int, *words: object, name: str) -> Run:
    run = options.work / f"{name}-{seed}"
    if not (run / "metrics.json").exists():
        steps = settings(
            student__training__steps=options.steps,
            student__training__validate_every=options.steps,
            student__training__learning_rate=2e-3,
            seed=seed,
        )
        where = ("-c", "hippocampus", "--data", options.data, "--runs", options.work, "--run", run)
        samkd("distill", *where, "--labelled", options.labelled, *words, *steps)
    return Run.read(run)


def test_scores(run: Run) -> CaseScores:
    scores = run.metrics().test
    assert scores is not None, f"{run.path}: this run has no test scores"
    return scores


def row(title: str, scores: CaseScores, note: str = "") -> None:
    dice = scores.summary.dice_by_class().values()
    print(f"| {title} | " + " | ".join(f"{value:.3f}" for value in dice) + f" | {note} |")


def experiment(options: argparse.Namespace) -> None:
    whole = open_dataset(config_for("hippocampus", None, []), options.data, runs=options.work)
    few = open_dataset(
        config_for("hippocampus", None, [f"labelled={options.labelled}"]), options.data, runs=options.work
    )
    raw = options.work / "raw" / NAME
    if not (raw / "dataset.json").exists():
        write_raw(few, {case.name: case.label.files[0] for case in whole.training if case.label}, raw)
    train_nnunet(options)
    teacher = predict(options, whole.training, "nnunet-predictions", "--save_probabilities")
    scores = evaluate(predict(options, whole.test, "nnunet-test"), options.data)

    pairs = []
    for seed in options.seeds:
        control = student(options, seed, "--lambda", 1, name="control")
        words = ("--teacher", teacher, "--lambda", options.lambda_, "--no-control")
        taught = student(options, seed, *words, name="taught")
        pairs.append((seed, test_scores(control), test_scores(taught)))
    print("\n| | " + " | ".join(scores.summary.dice_by_class()) + " | against its control |")
    print("|---|" + "---|" * (len(scores.summary.dice_by_class()) + 1))
    row("teacher: nnU-Net, brief", scores)
    for seed, control, taught in pairs:
        effect = paired_difference(taught.dice(), control.dice())["mean"]
        row(f"control, seed {seed}", control)
        note = f"{effect.difference:+.3f} [{effect.low:+.3f}, {effect.high:+.3f}]"
        row(f"student, seed {seed}", taught, note)
    gains = [(taught.summary.mean.dice or 0.0) - (control.summary.mean.dice or 0.0) for _, control, taught in pairs]
    print(f"mean over {len(pairs)} seed(s): {np.mean(gains):+.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nnunet", type=Path, required=True, help="the virtual environment that holds nnunetv2")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--labelled", type=int, default=18)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--lambda", dest="lambda_", type=float, default=0.5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    experiment(parser.parse_args())


if __name__ == "__main__":
    main()
