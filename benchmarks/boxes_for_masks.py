"""What boxes are worth in place of masks: a student taught by a published model that is shown a user's boxes.

    python benchmarks/boxes_for_masks.py DATA --out runs/boxes --seeds 0,1,2
    python benchmarks/boxes_for_masks.py DATA --out runs/boxes --seeds 0 --arms masks-2,masks-all --steps 2
    python benchmarks/boxes_for_masks.py DATA --out runs/boxes --only teach      # the teacher's soft masks alone
    python benchmarks/boxes_for_masks.py DATA --out runs/boxes --only table      # of the runs that are there
    python benchmarks/boxes_for_masks.py DATA --out runs/boxes --arms masks-all,masks-all-taught,masks-all-taught+dice

DATA is CHAOS T2-SPIR with 11 training and 5 test cases. One student, the same number of steps and of patches in a step:

- masks-2: the masks of two training cases, drawn by the seed
- boxes: these two, and for the other nine a box on every slice of every organ, whose edges are off by up to `--jitter`
  pixels (`samkd prompts`), through the published model; half of the patches are of cases with boxes
- masks-all: the masks of all eleven
- masks-all-taught: these, and the published model as the teacher, shown a tight box on every slice from the masks

An arm with a teacher and `+` the name of a variant (VARIANTS) measures the distance to the teacher otherwise.

Training keeps the last weights. One of the test cases takes the place of validation cases, which choose nothing here;
the scores are those of all five. Killed, it goes on where it was.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from verbs import samkd, settings
from zero_shot import Remembered

from samkd.configs.load import load_config
from samkd.deploy.runtime.engine_openvino import core
from samkd.distill.case_prompts import case_prompts
from samkd.distill.ensemble import Ensemble, EnsembleMember
from samkd.distill.soft_targets import cached_targets, validation_dice
from samkd.distill.train import student_plan
from samkd.evaluation.paired_comparison import paired_difference
from samkd.evaluation.records import CaseScores, DiceByCase
from samkd.training.prepared import prepare_cases
from samkd.training.run import Run
from samkd.training.validation import PooledDice
from samkd.volumes.datasets.registry import Case, Dataset, read_dataset
from samkd.workflows.data import open_dataset
from samkd.workflows.evaluate import evaluate

ARMS = ("masks-2", "boxes", "masks-all", "masks-all-taught")
LABELLED = 2
VARIANTS: dict[str, dict[str, object]] = {
    "dice": {"student__distillation__dice": 1},
    "balanced": {"student__distillation__balance_classes": True},
    "mean": {"student__distillation__over_classes": "mean"},
    "kl": {"student__distillation__loss": "kl"},
    "ema": {"student__training__ema": 0.98},
}
STUDENT: dict[str, Any] = {
    "name": "segresnet",
    "plan": {
        "orientation": "LPS",
        "spacing": [5.0, 7.0, 7.7],
        "intensity": [{"rule": "percentile", "low": 0.5, "high": 99.5}],
        "patch": [64, 32, 32],
        "overlap": 0.4,
    },
    "training": {
        "steps": 300,
        "batch": 2,
        "learning_rate": 3e-3,
        "warmup": 10,
        "validate_every": 300,
        "dice_weight": 0.8,
        "cross_entropy_weight": 0.2,
        "precision": "bf16-mixed",
        "augmentation": {"rotate_degrees": 10, "scale": 0.1, "brightness": 0.05, "contrast": 0.1},
    },
}


def write_config(data: Path, out: Path) -> Path:
    """The config of all arms: the published model's own teacher section, and the student above."""
    dataset = read_dataset(data)
    first, *test = [case.name for case in dataset.test]
    cases = {"train": [case.name for case in dataset.training], "validation": [first], "test": test}
    teacher = load_config("phantom-published").teacher.model_dump(mode="json")
    content = {
        "name": "boxes-for-masks",
        "data": str(data.resolve()),
        "split": {"cases": cases},
        "teacher": teacher,
        "student": STUDENT,
    }
    out.mkdir(parents=True, exist_ok=True)
    path = out / "boxes-for-masks.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def train(arm: str, seed: int, config: Path, options: argparse.Namespace) -> Run:
    """One arm of one seed, as a user would train it."""
    run = options.out / f"{arm}-{seed}"
    arm, _, variant = arm.partition("+")
    if not (run / "metrics.json").exists():
        batch = STUDENT["training"]["batch"]
        words: list[object] = ["--lambda", options.lambda_ if arm in ("boxes", "masks-all-taught") else 1]
        if arm in ("boxes", "masks-all-taught"):
            words += ["--teacher", options.out / "teacher", "--no-control"]
        if arm == "boxes":
            words += ["--prompts", options.out / "prompts"]
            batch //= 2  # as many patches of cases with boxes follow
        if arm in ("masks-2", "boxes"):
            words += ["--labelled", LABELLED, *settings(labelled_seed=seed)]
        training = settings(
            seed=seed,
            student__training__steps=options.steps,
            student__training__validate_every=options.steps,
            student__training__batch=batch,
            student__name=options.student,
            **(VARIANTS[variant] if variant else {}),
        )
        samkd("distill", "-c", config, "--runs", options.out, "--run", run, *words, *training)
    return Run.read(run)


class InOpenVINO(torch.nn.Module):
    """An image encoder run by OpenVINO on one thread: in float32 the same numbers to 1e-5 in half the time, in bfloat16
    to 4 % in a quarter of it.
    """

    def __init__(self, encoder: torch.nn.Module, *, side: int, precision: str) -> None:
        super().__init__()
        engine = core()  # first, as it leaves ovc out
        from openvino.tools.ovc import convert_model

        shape = [1, 3, side, side]
        model = convert_model(encoder, example_input=torch.zeros(shape), input=shape)
        hints = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": precision}
        self.compiled = engine.compile_model(model, "CPU", hints)

    def forward(self, slices: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self.compiled(slices.contiguous().numpy())[0].copy())


def teach(config: Path, options: argparse.Namespace) -> None:
    """The published model's run, boxes from the masks, and its soft masks of every training case for every use of them;
    a slice is encoded once. Prints how good these are.
    """
    samkd("teach", "-c", config, "--weights", options.weights, "--runs", options.out, "--run", options.out / "teacher")
    kinds = {"tight boxes": 0, f"edges off by up to {options.jitter}": options.jitter}
    folders = [options.out / "prompts-tight", options.out / "prompts"]
    for folder, jitter in zip(folders, kinds.values(), strict=True):
        samkd("prompts", options.data, "--kind", "boxes", "--jitter", jitter, "--seed", 0, "-o", folder)
    settings_ = load_config(str(config), [f"student.name={options.student}"])
    dataset, plan = open_dataset(settings_, options.data, runs=options.out), student_plan(settings_)
    ensemble = Ensemble([EnsembleMember.of(Run.read(options.out / "teacher"))])
    network: Any = ensemble.runs[0].network
    if options.openvino:
        network.image_encoder = InOpenVINO(network.image_encoder, side=network.patch[-1], precision=options.openvino)
    encoder = Remembered(network)
    scores = {name: PooledDice(dataset.labels) for name in ("boxes from the masks, no rule", *kinds)}
    per_case: dict[str, dict[str, Any]] = {}
    for case in dataset.training[options.part[0] :: options.part[1]]:
        variants = [case, *(_with_boxes(case, folder) for folder in folders)]
        for name, variant in zip(scores, variants, strict=True):
            truth, soft = _soft_mask(variant, case, ensemble, dataset, plan=plan, cache=options.out / "cache")
            scores[name].add(soft.argmax(0), truth)
            one = PooledDice(dataset.labels)
            one.add(soft.argmax(0), truth)
            per_case.setdefault(name, {})[case.name] = one.scores()
        encoder.known.clear()
        (options.out / f"soft-masks-{options.part[0]}.json").write_text(json.dumps(per_case, indent=1))
    validation_dice(
        ensemble, dataset.validation, dataset, plan=plan, cache=options.out / "cache"
    )  # distill asks for it
    print("\n| soft masks of the training cases | " + " | ".join(["mean", *list(dataset.labels.values())[1:]]) + " |")
    print("|---|" + "---|" * len(dataset.labels))
    for name, pooled in scores.items():
        print(f"| {name} | " + " | ".join(f"{value:.3f}" for value in pooled.scores().values()) + " |")
    print(f"encoder: {encoder.seconds / max(1, encoder.slices):.2f} s a slice over {encoder.slices} slices")


def _with_boxes(case: Case, folder: Path) -> Case:
    return replace(case, label=None, prompts=folder / f"{case.name}.json")


def _soft_mask(
    variant: Case, case: Case, ensemble: Ensemble, dataset: Dataset, *, plan: Any, cache: Path
) -> tuple[np.ndarray, np.ndarray]:
    """Truth [D, H, W] and soft targets [K, D, H, W] of a case on the student's grid, from the cache of the runs."""
    (labelled,) = prepare_cases([case], dataset, plan, cache, on_case=lambda name: None)
    (prepared,) = prepare_cases([variant], dataset, plan, cache, on_case=lambda name: None)
    (taught,) = cached_targets(ensemble, [variant], [prepared], dataset, plan=plan, cache=cache, limit=20e9)
    assert labelled.labels is not None and taught.soft_targets is not None
    assert (variant.label is None) == (case_prompts(variant, dataset) is not None)
    return np.asarray(labelled.labels), np.asarray(taught.soft_targets)


def scores_of(run: Run, data: Path) -> CaseScores:
    """Scores on all test cases of the data, measured once."""
    path = run.path / "five-cases.json"
    if not path.exists():
        path.write_text(json.dumps(evaluate(run.path, data).to_json()))
    return CaseScores.from_json(json.loads(path.read_text()))


def mean_over(tables: Sequence[DiceByCase]) -> DiceByCase:
    """Each case's Dice per class, averaged over seeds; every test case holds every class."""
    return {
        case: {name: float(np.mean([table[case][name] or 0.0 for table in tables])) for name in classes}
        for case, classes in tables[0].items()
    }


def with_mean(table: DiceByCase) -> dict[str, float]:
    """Mean Dice over the cases: of the classes together, then of each."""
    rows = {name: [row[name] or 0.0 for row in table.values()] for name in next(iter(table.values()))}
    classes = {name: float(np.mean(values)) for name, values in rows.items()}
    return {"mean": float(np.mean(list(classes.values()))), **classes}


def print_table(options: argparse.Namespace) -> None:
    """Dice of every arm, then the differences between arms case by case, over the seeds that all of them have."""
    seeds = [
        seed
        for seed in options.seeds
        if all((options.out / f"{arm}-{seed}" / "metrics.json").exists() for arm in options.arms)
    ]
    if not seeds:
        print("no seed has all arms yet")
        return
    tables = {
        arm: [scores_of(Run.read(options.out / f"{arm}-{seed}"), options.data).dice() for seed in seeds]
        for arm in options.arms
    }
    names = list(with_mean(next(iter(tables.values()))[0]))
    print(f"\nseeds {seeds}\n\n| arm | " + " | ".join(names) + " | mean of each seed |")
    print("|---|" + "---|" * (len(names) + 1))
    for arm, each in tables.items():
        by_seed = ", ".join(f"{with_mean(table)['mean']:.3f}" for table in each)
        print(f"| {arm} | " + " | ".join(f"{v:.3f}" for v in with_mean(mean_over(each)).values()) + f" | {by_seed} |")
    pairs = [("boxes", "masks-2"), ("masks-all", "masks-2"), ("boxes", "masks-all"), ("masks-all-taught", "masks-all")]
    variants = [arm for arm in tables if "+" in arm]
    pairs += [(arm, "masks-all" if arm.startswith("masks-all") else "masks-2") for arm in variants]
    pairs += [(arm, arm.partition("+")[0]) for arm in variants]
    pairs = [pair for pair in pairs if set(pair) <= set(tables)]
    print("\n| difference over the cases | " + " | ".join(names) + " |\n|---|" + "---|" * len(names))
    for one, other in pairs:
        effects = paired_difference(mean_over(tables[one]), mean_over(tables[other]))
        told = [f"{effects[n].difference:+.3f} [{effects[n].low:+.3f}, {effects[n].high:+.3f}]" for n in names]
        print(f"| {one} minus {other} | " + " | ".join(told) + " |")
    for arm in tables:
        if arm.startswith("boxes") and {"masks-2", "masks-all"} <= set(tables):
            low, boxes, high = (with_mean(mean_over(tables[each]))["mean"] for each in ("masks-2", arm, "masks-all"))
            print(f"\n{arm} closes {(boxes - low) / (high - low):.0%} of the gap between {LABELLED} masks and all")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/boxes-for-masks"))
    parser.add_argument("--weights", default="litemedsam")
    parser.add_argument("--student", default=STUDENT["name"])
    parser.add_argument("--steps", type=int, default=STUDENT["training"]["steps"])
    parser.add_argument("--seeds", type=lambda text: [int(part) for part in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--arms", type=lambda text: text.split(","), default=list(ARMS))
    parser.add_argument("--jitter", type=int, default=5)
    parser.add_argument("--lambda", dest="lambda_", type=float, default=0.5)
    parser.add_argument("--openvino", choices=("f32", "bf16"), help="run the teacher's image encoder in OpenVINO")
    parser.add_argument(
        "--part", type=int, nargs=2, default=(0, 1), metavar=("I", "N"), help="every Nth case from I on"
    )
    parser.add_argument("--only", choices=("teach", "train", "table"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = write_config(options.data, options.out)
    if options.only in (None, "teach") and any(arm.startswith(("boxes", "masks-all-taught")) for arm in options.arms):
        teach(config, options)
    if options.only in (None, "train"):
        for seed in options.seeds:
            for arm in options.arms:
                scores_of(train(arm, seed, config, options), options.data)
    if options.only != "teach":
        print_table(options)


if __name__ == "__main__":
    main()
