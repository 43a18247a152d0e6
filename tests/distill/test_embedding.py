"""Image embeddings: a pure distance, taken from the networks' own passes, and the refusals."""

import json
from dataclasses import replace

import pytest
import torch
from helpers.encoder_sizes import EFFICIENT, TINY
from helpers.runs import SLICES, run_verb, runs_of
from helpers.teachers import tiny_teacher
from safetensors.torch import load_file
from torch import nn

from samkd.configs.load import load_config
from samkd.configs.schema import Distillation, Training
from samkd.distill.embedding import EmbeddingMatch
from samkd.distill.losses import distance_of
from samkd.distill.step import DistillationStep
from samkd.errors import UsageError
from samkd.sam.presets import EncoderSize
from samkd.students import build_student
from samkd.students.small_sam.model import SmallSAM, build_small_sam

PATCH = (3, 64, 64)
IMAGE = torch.zeros(1, 1, *PATCH)


def student(size: EncoderSize = TINY) -> SmallSAM:
    return build_small_sam(size, in_channels=1, num_classes=4, patch=PATCH)


def test_it_is_the_mean_squared_distance_after_the_projection():
    learner, teacher = student().train(), student(EFFICIENT).eval()
    match = EmbeddingMatch(learner, [("a", teacher, 1.0)], IMAGE)
    assert learner.training
    image = torch.randn(2, 1, *PATCH)
    (projection,) = match.projections
    assert isinstance(projection, nn.Conv2d) and projection.bias is not None
    with torch.no_grad():
        wanted = teacher.encode(image).transpose(1, 2).flatten(0, 1)
    with match.recording() as embeddings:
        learner(image)
        with torch.no_grad():
            teacher(image)
    seen = learner.encode(image).transpose(1, 2).flatten(0, 1)
    expected = (
        torch.einsum("oi,nihw->nohw", projection.weight[..., 0, 0], seen) + projection.bias[:, None, None] - wanted
    ) ** 2
    distance = match(embeddings)
    torch.testing.assert_close(distance, expected.mean())
    distance.backward()
    assert all(p.grad is not None for p in match.parameters())
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in learner.image_encoder.parameters())
    assert all(p.grad is None for p in teacher.parameters())


@pytest.mark.slow
def test_the_projection_learns_what_is_a_projection_away():
    """A student whose encoder is the teacher's needs nothing but the projection."""
    teacher = student().eval()
    learner = student().eval()
    learner.load_state_dict(teacher.state_dict())
    match = EmbeddingMatch(learner, [("a", teacher, 0.25), ("b", teacher, 0.75)], IMAGE)
    optimizer = torch.optim.Adam(match.parameters(), lr=0.02)
    image, seen = torch.randn(2, 1, *PATCH), []
    for _ in range(150):
        with match.recording() as embeddings:
            learner(image)
            with torch.no_grad():
                teacher(image)
        loss = match(embeddings)
        seen.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert seen[-1] < 0.02 * seen[0]


@pytest.mark.parametrize(
    "teacher", [tiny_teacher("medsa", patch=PATCH), tiny_teacher("masam", patch=PATCH)], ids=["medsa", "masam"]
)
def test_teachers_that_encode_slices(teacher):
    learner = student()
    match = EmbeddingMatch(learner, [("a", teacher, 1.0)], IMAGE)
    image = torch.randn(1, 1, *PATCH)
    with match.recording() as embeddings:
        learner(image)
        teacher(image)
    assert torch.isfinite(match(embeddings))


def test_networks_without_such_an_embedding_are_refused():
    image = torch.zeros(1, 1, 8, 16, 24)
    with pytest.raises(UsageError, match="teacher deep does not encode slice by slice"):
        EmbeddingMatch(
            build_small_sam(TINY, in_channels=1, num_classes=3, patch=(8, 16, 32)),
            [("deep", tiny_teacher("sam3d", patch=(8, 16, 32)), 1.0)],
            torch.zeros(1, 1, 8, 16, 32),
        )
    convolutional = build_student("segresnet", in_channels=1, num_classes=3, patch=(8, 16, 24))
    with pytest.raises(UsageError, match="the student has no image encoder"):
        EmbeddingMatch(convolutional, [], image)


@pytest.mark.slow
def test_through_the_verb_and_no_trace_of_it_in_the_weights(tmp_path):
    options = ("distill", "-c", "phantom-efficientsam")
    plain = [one for one in SLICES if "prompts" not in one]
    assert run_verb(*options, "--lambda", 1, runs=tmp_path, sets=[*plain, "seed=1"]).exit_code == 0
    (teacher,) = runs_of(tmp_path, "control")
    matched = [*plain, "student.distillation.embedding=0.5"]
    taught = (*options, "--teacher", teacher.path, "--lambda", 0.5, "--no-control")
    done = run_verb(*taught, runs=tmp_path, sets=matched)
    assert done.exit_code == 2 and "--online" in done.output
    done = run_verb(*taught, "--online", runs=tmp_path, sets=matched)
    assert done.exit_code == 0, done.output
    (run,) = [each for each in runs_of(tmp_path, "distill") if each.finished]
    log = [json.loads(line) for line in (run.path / "log.jsonl").read_text().splitlines()]
    for entry in log:
        terms = 0.5 * (entry["segmentation"] + entry["distillation"] + 0.5 * entry["embedding"])
        assert entry["loss"] == pytest.approx(terms, rel=1e-5) and entry["embedding"] > 0
    assert load_file(run.weights).keys() == load_file(teacher.weights).keys()
    assert any("projections" in key for key in load_file(run.state))


def test_without_a_projection_the_embedding_is_compared_as_it_is():
    learner, teacher = student().train(), student().eval()
    match = EmbeddingMatch(learner, [("a", teacher, 1.0)], IMAGE, projection=False)
    assert not list(match.parameters())
    image = torch.randn(1, 1, *PATCH)
    distance = match.of_images(image)
    with torch.no_grad():
        expected = (learner.encode(image) - teacher.encode(image)).square().mean()
    torch.testing.assert_close(distance.detach(), expected, atol=1e-4, rtol=1e-3)
    distance.backward()
    assert all(p.grad is None for p in learner.mask_decoder.parameters())
    wider = replace(TINY, out_chans=96)
    with pytest.raises(UsageError, match=r"distillation\.projection: .* 64 channels, its teachers' 96; set it to true"):
        EmbeddingMatch(learner, [("a", student(wider), 1.0)], IMAGE, projection=False)


def test_the_first_steps_learn_from_the_embedding_alone():
    learner, teacher = student().train(), student().eval()
    match = EmbeddingMatch(learner, [("a", teacher, 1.0)], IMAGE, projection=False)
    step = DistillationStep(
        lambda_=1.0,
        distance=distance_of(Distillation()),
        settings=Training(steps=2),
        helper=match,
        embedding_weight=2.0,
        embedding_steps=1,
    )
    batch = {"image": torch.randn(1, 1, *PATCH), "labels": torch.zeros(1, *PATCH, dtype=torch.int16)}
    first = step(learner, batch, 0)
    assert set(first) == {"loss", "embedding"}
    torch.testing.assert_close(first["loss"].detach(), 2 * first["embedding"])
    with torch.no_grad():
        teacher(batch["image"])
    assert "segmentation" in replace(step, helper=None)(learner, batch, 1)


@pytest.mark.parametrize("key", ["projection=false", "embedding_steps=5", "cache_embeddings=true"])
def test_what_belongs_to_an_embedding_is_refused_without_one(key: str):
    with pytest.raises(UsageError, match="belong to an embedding above 0"):
        load_config("phantom", [f"student.distillation.{key}"])
