"""samkd distill from end to end on a tiny phantom, in this process: finished runs of any stage teach."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from helpers.published_checkpoints import manifest
from helpers.runs import SLICES, TINY, data_of, run_verb, runs_of
from safetensors.torch import load_file

from samkd.configs.load import load_config
from samkd.distill.ensemble import read_teacher
from samkd.errors import BadInputError, UsageError
from samkd.students.small_sam.model import SmallSAM
from samkd.training.run import control_of
from samkd.workflows.data import open_dataset

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def teachers(tmp_path_factory) -> list[Path]:
    """Two students without teachers, of two seeds."""
    runs = tmp_path_factory.mktemp("teachers")
    for seed in (1, 2):
        done = run_verb("distill", "-c", "phantom", "--lambda", 1, runs=runs, sets=[*TINY, f"seed={seed}"])
        assert done.exit_code == 0, done.output
    return [run.path for run in runs_of(runs, "control")]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, teachers) -> Path:
    """A sweep from both teachers, with 3 of 5 training cases labelled."""
    folder = tmp_path_factory.mktemp("runs")
    one, two = teachers
    options = [*data_of(one), "--teacher", one, "--teacher", f"{two}=3", "--labelled", 3, "--lambda", "0.5,1"]
    done = run_verb("distill", *options, runs=folder)
    assert done.exit_code == 0, done.output
    assert "minus the control" in done.output and "95 % interval" in done.output
    return folder


def test_the_few_labels_experiment_is_one_command(runs):
    (student,), (control,) = runs_of(runs, "distill"), runs_of(runs, "control")
    objective = student.config.objective
    assert [round(teacher.share, 9) for teacher in objective.teachers] == [0.25, 0.75]
    assert objective.teaching is not None
    assert objective.teaching.unlabelled["cases"] == 2 and not objective.teaching.online
    cases = student.config.cases
    assert cases == control.config.cases
    assert len(cases.train) + len(cases.validation) == 3
    assert len(list((runs / "cache" / "targets").rglob("*.targets"))) == 4  # none for the validation case
    kept, drawn = (
        [case.name for case in open_dataset(config, Path(student.config.data), runs=runs).training if case.label]
        for config in (load_config("phantom", [*TINY, "labelled=3", f"labelled_seed={seed}"]) for seed in (0, 1))
    )
    assert sorted(kept) == sorted([*cases.train, *cases.validation])
    assert len(drawn) == 3 and set(drawn) != set(kept)


def test_the_run_says_what_the_teachers_were_worth(runs):
    (student,), (control,) = runs_of(runs, "distill"), runs_of(runs, "control")
    comparison = json.loads((student.path / "comparison.json").read_text())
    assert comparison["control"] == control.path.name
    names = list(comparison["teachers"])
    assert len(names) == 3 and names[2] == "all together"
    scores = [run.metrics().test for run in (student, control)]
    one, other = (each.summary.mean.dice or 0.0 for each in scores if each)
    assert comparison["classes"]["mean"]["difference"] == pytest.approx(one - other, abs=1e-9)
    assert comparison["classes"]["mean"]["cases"] == 2
    assert comparison["classes"]["mean"]["low"] <= one - other <= comparison["classes"]["mean"]["high"]
    (curve,) = runs.glob("lambda-phantom-*.svg")
    assert curve.read_text().startswith('<svg xmlns="http://www.w3.org/2000/svg"')


def test_the_control_is_reused_and_a_finished_student_too(runs, teachers):
    before = {path: path.stat().st_mtime_ns for path in runs.glob("*/weights.safetensors")}
    options = [*data_of(teachers[0]), "--teacher", teachers[0], "--teacher", f"{teachers[1]}=3", "--labelled", 3]
    done = run_verb("distill", *options, "--lambda", "0.5", runs=runs)
    assert done.exit_code == 0, done.output
    assert {path: path.stat().st_mtime_ns for path in runs.glob("*/weights.safetensors")} == before


def test_online_without_a_control(teachers, tmp_path):
    options = [*data_of(teachers[0]), "--teacher", teachers[0], "--lambda", 0, "--online", "--no-control"]
    done = run_verb("distill", *options, runs=tmp_path)
    assert done.exit_code == 0, done.output
    assert runs_of(tmp_path, "control") == [] and not list(tmp_path.rglob("*.targets"))
    (student,) = runs_of(tmp_path, "distill")
    assert student.config.objective.teaching is not None and student.config.objective.teaching.online
    start = load_file(teachers[0] / "weights.safetensors")
    assert load_file(student.weights).keys() == start.keys()


def test_prompts_in_the_loop_are_shown_to_teacher_and_student_alike(tmp_path, monkeypatch):
    """EdgeSAM's decoder distillation, unlabelled scans included: there the clicks lie in what the teacher sees."""
    options = ("distill", "-c", "phantom-efficientsam")
    done = run_verb(*options, "--lambda", 1, runs=tmp_path, sets=[*SLICES, "seed=1"])
    assert done.exit_code == 0, done.output
    (teacher,) = runs_of(tmp_path, "control")
    seen = {True: [], False: []}  # by whether the network is in training
    forward = SmallSAM.forward

    def spy(self, image, prompts=None):
        if prompts is not None:
            seen[self.training and torch.is_grad_enabled()].append(prompts)
        return forward(self, image, prompts)

    monkeypatch.setattr(SmallSAM, "forward", spy)
    more = ("--teacher", teacher.path, "--lambda", 0.5, "--online", "--no-control", "--labelled", 3)
    done = run_verb(*options, *more, runs=tmp_path, sets=SLICES)
    assert done.exit_code == 0, done.output
    (student,) = runs_of(tmp_path, "distill")
    assert (student.config.objective.prompts or {})["kind"] == "points"
    assert len(seen[True]) == 3 and all(any(shown is other for other in seen[False]) for shown in seen[True])
    assert all(len(shown.labels) == 2 and (shown.labels >= 0).any() for shown in seen[True])  # a labelled one, and not


def test_student_and_control_start_from_a_published_file(tmp_path):
    torch.manual_seed(0)
    file = tmp_path / "efficient_sam_vitt.pt"
    torch.save({name: 0.02 * torch.randn(shape) for name, shape in manifest("efficient_vit_ti").items()}, file)
    options = ("distill", "-c", "phantom-efficientsam", "--lambda", 1)
    still = [one for one in SLICES if "prompts" not in one] + ["student.training.learning_rate=1e-12"]
    for more in ([], ["--student-weights", file]):
        done = run_verb(*options, *more, runs=tmp_path / "runs", sets=still)
        assert done.exit_code == 0, done.output
    assert "tensors loaded" in done.output
    started, scratch = sorted(
        runs_of(tmp_path / "runs", "control"), key=lambda run: run.config.objective.pretrained is None
    )
    assert json.loads((started.path / "pretrained.json").read_text())["variant"] == "efficient_vit_ti"
    published = torch.load(file, weights_only=True)
    key = "image_encoder.blocks.0.attn.qkv.weight"
    torch.testing.assert_close(load_file(started.weights)[key], published[key])
    assert not torch.equal(load_file(scratch.weights)[key], published[key])
    for run in (started, scratch):
        control = control_of(run, tmp_path / "runs")
        assert control is not None and control.path == run.path
    for student, said, code in (
        ("swinunetr-tiny", "no published weights", 2),
        ("mobilesam", "these are weights of", 3),
    ):
        cube = ["student.plan.patch=[32,32,64]"]
        sets = [*still, *(cube if student == "swinunetr-tiny" else [])]
        done = run_verb(*options, "--student", student, "--student-weights", file, runs=tmp_path / "bad", sets=sets)
        assert done.exit_code == code and said in done.text, done.output
    assert not list((tmp_path / "bad").glob("control*"))


def test_a_cache_beyond_its_limit_is_refused(teachers, tmp_path):
    options = [
        *data_of(teachers[0]),
        "--teacher",
        teachers[0],
        "--lambda",
        0.5,
        "--no-control",
        "--cache-limit",
        "0.001M",
    ]
    done = run_verb("distill", *options, runs=tmp_path)
    assert done.exit_code == 2
    assert "raise --cache-limit" in done.output
    assert not list(tmp_path.rglob("*.targets*")) and not list(tmp_path.rglob("*.tmp-*"))


def test_a_flipped_byte_in_the_cache_is_exit_4(teachers, tmp_path):
    options = [*data_of(teachers[0]), "--teacher", teachers[0], "--lambda", 0.5, "--no-control"]
    done = run_verb("distill", *options, runs=tmp_path)
    assert done.exit_code == 0, done.output
    for path in tmp_path.rglob("*.targets"):
        content = bytearray(path.read_bytes())
        for position in range(len(content) // 4, len(content), 50):
            content[position] ^= 1
        path.write_bytes(content)
    done = run_verb("distill", *options, runs=tmp_path, sets=[*TINY, "student.training.steps=2"])
    assert done.exit_code == 4
    assert "damaged" in done.output


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--lambda", "1.5"], 2, "less than or equal to 1"),
        (["--lambda", "0.5,-0.1"], 2, "greater than or equal to 0"),
        (["--lambda", "half"], 2, "--lambda 'half'"),
        (["--lambda", "0,1", "--run", "one"], 2, "several lambdas"),
        (["--cache-limit", "much"], 2, "expected a number and M, G or T"),
        (["--teacher", "TEACHER=0"], 2, "a weight above 0"),
        (["--teacher", "TEACHER=a"], 2, "FOLDER=WEIGHT"),
        (["--teacher", "nowhere"], 3, "not a run folder"),
        (["--teacher", "TEACHER", "--unlabelled", "EMPTY"], 3, "no scan here"),
        (["--teacher", "TEACHER", "--unlabelled", "EMPTY", "--lambda", "1"], 2, "scans without masks teach nothing"),
        (["--teacher", "TEACHER", "--labelled", "9"], 3, "5 labelled training case(s)"),
        (["--lambda", "1", "--set", "student.prompts.kind=box"], 2, "'swinunetr-tiny' takes no prompts of kind 'box'"),
    ],
)
def test_a_wrong_call_says_what_is_wrong(teachers, tmp_path, options, code, said):
    (tmp_path / "empty").mkdir()
    places = {"TEACHER": str(teachers[0]), "EMPTY": str(tmp_path / "empty")}
    for word, place in places.items():
        options = [option.replace(word, place) for option in options]
    done = run_verb("distill", *data_of(teachers[0]), *options, runs=tmp_path / "runs")
    assert done.exit_code == code, done.output
    assert said in done.text
    assert not list((tmp_path / "runs").glob("distill-*"))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda config: config["labels"].update({"1": "spline"}), "must have the same classes"),
        (
            lambda config: config.update(channels=["T1", "T2"], network={**config["network"], "in_channels": 2}),
            "must see the same channels",
        ),
        (lambda config: config.pop("plan"), "not a run's; expected the keys"),
        (lambda config: config["plan"].pop("patch"), "unknown or missing ['patch']"),
        (None, "this run is not finished"),
    ],
)
def test_a_run_that_cannot_teach_is_refused(teachers, tmp_path, damage, said):
    teacher = tmp_path / "teacher"
    shutil.copytree(teachers[0], teacher)
    config = yaml.safe_load((teacher / "config.yaml").read_text())
    if damage:
        damage(config)
    else:
        (teacher / "metrics.json").unlink()
    (teacher / "config.yaml").write_text(yaml.safe_dump(config))
    done = run_verb("distill", *data_of(teachers[0]), "--teacher", teacher, runs=tmp_path / "runs")
    assert done.exit_code == 3, done.output
    assert said in done.text
    assert not list((tmp_path / "runs").glob("distill-*")) and not list((tmp_path / "runs").glob("control-*"))


def test_a_teacher_is_a_run_folder_and_a_weight(teachers):
    run, weight = read_teacher(f"{teachers[0]}=0.7")
    assert (run.path, weight) == (teachers[0], 0.7)
    assert read_teacher(str(teachers[0]))[1] == 1.0
    with pytest.raises(UsageError, match="above 0"):
        read_teacher(f"{teachers[0]}=inf")
    with pytest.raises(BadInputError, match="not a run folder"):
        read_teacher("nowhere=0.5")
