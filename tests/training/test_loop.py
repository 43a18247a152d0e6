"""The loop on a network of a few weights: learning, exact resume, interruption, non-finite losses."""

import json
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import torch
from lightning.fabric import Fabric
from safetensors.torch import load_file

from samkd.config import Augmentation, Training
from samkd.errors import IntegrityError, SamkdError
from samkd.training.cases import PreparedCase
from samkd.training.loop import MAX_SKIPPED, Stopped, fit
from samkd.training.patches import PatchBatches
from samkd.training.run import Run


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    layers = [torch.nn.Conv3d(1, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Dropout(0.2), torch.nn.Conv3d(4, 2, 1)]
    return torch.nn.Sequential(*layers)


def make_batches(settings: Training) -> PatchBatches:
    labels = np.zeros((8, 8, 8), np.uint8)
    labels[2:6, 2:6, 2:6] = 1
    case = PreparedCase("a", labels[None].astype(np.float32), labels, (1, 1, 1), {1: np.argwhere(labels)}, 0.0)
    return PatchBatches(
        [case],
        patch=(4, 4, 4),
        batch=2,
        steps=settings.steps * settings.accumulate,
        foreground=0.5,
        augmentation=Augmentation(noise=0.1),
        seed=0,
    )


def make_run(folder, settings: Training) -> Run:
    config = {
        "stage": "teach",
        "network": {},
        "objective": {},
        "plan": {},
        "labels": {},
        "channels": [],
        "cases": {},
        "seed": 3,
        "data": "",
        "recipe": {},
        "training": settings.model_dump(mode="json"),
    }
    return Run.create(folder, config)


def cross_entropy(logits, batch):
    return {"loss": torch.nn.functional.cross_entropy(logits, batch["labels"].long())}


def train(folder, settings, objective=cross_entropy, validate=lambda model: {"mean": 0.5}):
    net = network()
    summary = fit(
        net,
        batches=make_batches(settings),
        objective=objective,
        validate=validate,
        settings=settings,
        run=make_run(folder, settings),
        fabric=Fabric(accelerator="cpu", devices=1),
        title="test",
    )
    return net, summary


def losses(folder) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


def test_it_learns(tmp_path):
    train(tmp_path / "run", Training(steps=40, learning_rate=0.05, validate_every=40))
    seen = losses(tmp_path / "run")
    assert len(seen) == 40
    assert np.mean(seen[-5:]) < 0.5 * np.mean(seen[:5])


def test_weights_are_those_of_the_best_validation(tmp_path):
    scores = iter([0.2, 0.9, 0.4])
    kept = []

    def validate(model):
        kept.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return {"mean": next(scores)}

    _, summary = train(tmp_path / "run", Training(steps=6, validate_every=2), validate=validate)
    assert (summary.best_dice, summary.best_step) == (0.9, 4)
    for name, tensor in load_file(tmp_path / "run" / "weights.safetensors").items():
        assert torch.equal(tensor, kept[1][name])


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, accumulate):
    settings = Training(steps=8, validate_every=3, accumulate=accumulate)
    whole, _ = train(tmp_path / "whole", settings)

    calls = iter(range(100))

    def interrupt(logits, batch):
        if next(calls) == 4 * accumulate:
            signal.raise_signal(signal.SIGINT)
        return cross_entropy(logits, batch)

    with pytest.raises(Stopped, match="stopped at step 5"):
        train(tmp_path / "torn", settings, objective=interrupt)
    resumed, _ = train(tmp_path / "torn", settings)
    for one, two in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, two)
    assert losses(tmp_path / "whole") == losses(tmp_path / "torn")


def test_a_run_killed_at_once_continues_exactly(tmp_path):
    """kill -9 while it trains: the restart ends with the weights of a run that was never killed."""
    settings = Training(steps=60, validate_every=5)
    whole, _ = train(tmp_path / "whole", settings)
    program = f"""
        import importlib.util, time, sys
        spec = importlib.util.spec_from_file_location("loop_test", {__file__!r})
        module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)
        def slow(logits, batch):
            time.sleep(0.05)
            return module.cross_entropy(logits, batch)
        import pathlib
        module.train(pathlib.Path({str(tmp_path / "torn")!r}), module.Training(steps=60, validate_every=5), slow)
    """
    child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)])
    log = tmp_path / "torn" / "log.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (log.exists() and len(log.read_text().splitlines()) >= 12):
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert 12 <= len(log.read_text().splitlines()) < 60
    assert not (tmp_path / "torn" / "metrics.json").exists()
    resumed, _ = train(tmp_path / "torn", settings)
    for one, two in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, two)
    assert losses(tmp_path / "whole") == losses(tmp_path / "torn")


def test_a_step_that_is_not_finite_is_skipped_and_counted(tmp_path):
    calls = iter(range(100))

    def sometimes(logits, batch):
        factor = float("nan") if next(calls) in (2, 3) else 1.0
        return {"loss": cross_entropy(logits, batch)["loss"] * factor}

    net, summary = train(tmp_path / "run", Training(steps=6, validate_every=6), objective=sometimes)
    assert summary.skipped == 2
    assert all(torch.isfinite(parameter).all() for parameter in net.parameters())


def test_too_many_non_finite_steps_stop_the_run_with_a_reason(tmp_path):
    def never(logits, batch):
        return {"loss": logits.sum() * float("inf")}

    settings = Training(steps=MAX_SKIPPED + 5, validate_every=100)
    with pytest.raises(SamkdError, match="not finite for 20 steps"):
        train(tmp_path / "run", settings, objective=never)


@pytest.mark.parametrize("damage", ["truncate", "flip"])
def test_a_broken_state_is_refused(tmp_path, damage):
    settings = Training(steps=4, validate_every=2)
    train(tmp_path / "run", settings)
    state = tmp_path / "run" / "state" / "last.safetensors"
    content = bytearray(state.read_bytes())
    state.write_bytes(content[:100] if damage == "truncate" else b"\xff" * 8 + content[8:])
    with pytest.raises(IntegrityError, match="not a readable training state"):
        train(tmp_path / "run", settings)
