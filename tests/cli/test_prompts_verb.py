"""samkd prompts: files drawn from masks, which say so."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.command_line import Outcome, run_cli
from helpers.dataset_layouts import NIFTI

from samkd.training.prompt_sampling import slice_boxes, tight_box
from samkd.volumes.datasets.registry import read_dataset, read_labelled_case
from samkd.volumes.prompt_parsing import read_prompts

NNUNET = "nnU-Net v2 raw"


def prompts(*words: object) -> Outcome:
    return run_cli("prompts", *words, in_process=True)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return NIFTI[NNUNET](tmp_path / "data")


def boxes_of(path: Path, data: Path) -> dict[int, np.ndarray]:
    read = read_prompts(path, read_dataset(data).labels)
    return {value: np.array(shown.boxes) for value, shown in read.classes.items()}


@pytest.mark.parametrize("kind", ["box", "boxes", "point"])
def test_prompts_lie_on_the_mask_and_say_where_they_come_from(data, tmp_path, kind):
    outcome = prompts(data, "--kind", kind, "-o", tmp_path / "out")
    assert outcome.exit_code == 0, outcome.output
    dataset = read_dataset(data)
    assert sorted(path.stem for path in (tmp_path / "out").iterdir()) == [case.name for case in dataset.training]
    for case in dataset.training:
        path = tmp_path / "out" / f"{case.name}.json"
        assert json.loads(path.read_text())["origin"] == f"samkd prompts: {kind} from the mask of {case.name}"
        _, mask = read_labelled_case(case, dataset)
        for value, shown in read_prompts(path, dataset.labels).classes.items():
            if kind == "point":
                ((i, j, k, label),) = shown.points
                assert label == 1 and mask[int(k), int(j), int(i)] == value and not shown.boxes
            elif kind == "boxes":
                assert shown.boxes == slice_boxes(mask == value)
            else:
                low, high = tight_box(mask == value)
                assert shown.boxes == ((*low[::-1], *high[::-1]),)


def test_edges_move_in_their_slice_by_the_jitter_and_the_margin_and_never_out_of_the_scan(data, tmp_path):
    for name, words in {"tight": (), "off": ("--jitter", 2), "wide": ("--jitter", 2, "--margin", 1)}.items():
        assert prompts(data, "--kind", "boxes", "-o", tmp_path / name, *words).exit_code == 0
    for path in sorted((tmp_path / "tight").iterdir()):
        tight, off, wide = (boxes_of(tmp_path / name / path.name, data) for name in ("tight", "off", "wide"))
        for value, rows in tight.items():
            moved = off[value] - rows
            assert 0 < np.abs(moved).max() <= 2 and not moved[:, [2, 5]].any()
            outwards = (wide[value] - off[value]) * [-1, -1, 1, 1, 1, 1]
            assert set(np.unique(outwards)) <= {0, 1} and not outwards[:, [2, 5]].any() and outwards.any()
            assert (wide[value] >= 0).all()


def test_what_is_drawn_depends_on_the_seed_and_the_case_alone(data, tmp_path):
    names = [case.name for case in read_dataset(data).training]
    words = ["--kind", "boxes", "--jitter", 3]
    assert prompts(data, *words, "-o", tmp_path / "all").exit_code == 0
    assert prompts(data, *words, "-o", tmp_path / "two", "--cases", f"{names[2]},{names[1]}").exit_code == 0
    assert prompts(data, *words, "-o", tmp_path / "other", "--seed", 1).exit_code == 0
    assert sorted(path.stem for path in (tmp_path / "two").iterdir()) == names[1:]
    for path in (tmp_path / "two").iterdir():
        assert path.read_text() == (tmp_path / "all" / path.name).read_text()
        assert path.read_text() != (tmp_path / "other" / path.name).read_text()
    assert prompts(data, *words, "-o", tmp_path / "two").exit_code == 0  # over its own files


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--kind", "circle"], 2, "--kind 'circle': choose one of box, boxes, point"),
        (["--kind", "point", "--jitter", 2], 2, "--jitter and --margin move the edges of boxes"),
        (["--kind", "box", "--cases", "nobody"], 3, "no training case with a mask that is called nobody"),
    ],
)
def test_a_wrong_call_writes_nothing(data, tmp_path, words, code, message):
    outcome = prompts(data, *words, "-o", tmp_path / "out")
    assert outcome.exit_code == code and message in outcome.text
    assert not (tmp_path / "out").exists()


def test_prompts_drawn_by_hand_are_never_written_over(data, tmp_path):
    (tmp_path / "out").mkdir()
    mine = tmp_path / "out" / f"{read_dataset(data).training[1].name}.json"
    mine.write_text('{"classes": {}}')
    outcome = prompts(data, "--kind", "box", "-o", tmp_path / "out")
    assert outcome.exit_code == 3 and "was not drawn by `samkd prompts`" in outcome.text
    assert [path.name for path in (tmp_path / "out").iterdir()] == [mine.name]
    assert mine.read_text() == '{"classes": {}}'
