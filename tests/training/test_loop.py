"""The loop on a network of a few weights: learning, exact resume, interruption, non-finite losses."""

import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.tiny_training import cross_entropy, losses, network, train
from safetensors.torch import load_file

from samkd.configs.schema import Training
from samkd.errors import IntegrityError, SamkdError
from samkd.training.interrupt import Stopped
from samkd.training.loop import MAX_SKIPPED
from samkd.training.precision import with_precision

pytestmark = pytest.mark.slow


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


@pytest.mark.parametrize(("accumulate", "ema"), [(1, 0.0), (2, 0.9)])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, accumulate, ema):
    settings = Training(steps=8, validate_every=3, accumulate=accumulate, ema=ema)
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
    one, two = (load_file(tmp_path / name / "state" / "last.safetensors") for name in ("whole", "torn"))
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
    assert any(key.startswith("average.") for key in one) == bool(ema)


def test_in_bfloat16_products_are_bfloat16_and_losses_and_weights_are_float32(tmp_path):
    net, seen = network(), []

    def objective(logits, batch):
        seen.append(logits.dtype)
        return cross_entropy(logits, batch)

    next(net.children()).register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    train(tmp_path / "run", Training(steps=1, precision="bf16-mixed"), objective, net=net)
    assert seen == [torch.bfloat16, torch.float32]
    assert all(parameter.dtype == torch.float32 for parameter in net.parameters())


@pytest.mark.parametrize(
    ("precision", "card", "bf16", "expected"),
    [
        ("auto", True, True, "bf16-mixed"),
        ("auto", True, False, "32-true"),
        ("auto", False, False, "32-true"),
        ("32-true", True, True, "32-true"),
        ("bf16-mixed", False, False, "bf16-mixed"),
    ],
)
def test_the_precision_is_that_of_the_card_unless_the_config_says_it(monkeypatch, precision, card, bf16, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: card)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
    assert with_precision(Training(steps=1, precision=precision)).precision == expected


def test_a_helper_learns_along_resumes_exactly_and_is_no_part_of_the_weights(tmp_path):
    settings = Training(steps=6, validate_every=3, learning_rate=0.05)

    def run(folder, stop_at=None):
        torch.manual_seed(1)
        helper, calls = torch.nn.Linear(1, 1), iter(range(100))

        def objective(logits, batch):
            if next(calls) == stop_at:
                signal.raise_signal(signal.SIGINT)
            return {"loss": cross_entropy(logits, batch)["loss"] + (helper(logits.mean()[None]) - 3).square().sum()}

        train(tmp_path / folder, settings, objective=objective, helper=helper)
        return helper

    whole = run("whole")
    with pytest.raises(Stopped):
        run("torn", stop_at=3)
    resumed = run("torn")
    assert torch.equal(whole.weight, resumed.weight) and torch.equal(whole.bias, resumed.bias)
    assert losses(tmp_path / "whole") == losses(tmp_path / "torn")
    torch.manual_seed(1)
    assert not torch.equal(whole.bias, torch.nn.Linear(1, 1).bias)
    assert load_file(tmp_path / "whole" / "weights.safetensors").keys() == network().state_dict().keys()


def test_the_averaged_weights_are_validated_and_kept(tmp_path):
    """Against the recursion by hand, from the weights that a run without averaging has after every step."""
    seen = []

    def validate(model):
        seen.append([parameter.detach().clone() for parameter in model.parameters()])
        return {"mean": len(seen) / 10}

    options = {"steps": 6, "validate_every": 1, "learning_rate": 0.05}
    train(tmp_path / "plain", Training(**options), validate=validate)
    plain, expected = list(seen), [parameter.detach().clone() for parameter in network().parameters()]
    seen.clear()
    own, _ = train(tmp_path / "ema", Training(**options, ema=0.3), validate=validate)
    for step, (weights, averaged) in enumerate(zip(plain, seen, strict=True)):
        decay = min(0.3, (1 + step) / (10 + step))
        expected = [decay * value + (1 - decay) * weight for value, weight in zip(expected, weights, strict=True)]
        for value, result in zip(expected, averaged, strict=True):
            torch.testing.assert_close(result, value)
    for weight, result in zip(plain[-1], own.parameters(), strict=True):
        assert torch.equal(weight, result)  # training goes on with its own weights
    kept = load_file(tmp_path / "ema" / "weights.safetensors")
    for (name, _), value in zip(network().named_parameters(), seen[-1], strict=True):
        assert torch.equal(kept[name], value)


def test_patience_ends_a_run_early_also_across_a_restart(tmp_path):
    scores = [0.2, 0.5, 0.4, 0.5, 0.1, 0.9]

    def validation():
        left = iter(scores)
        return lambda model: {"mean": next(left)}

    settings = Training(steps=12, validate_every=2, patience=3)
    _, summary = train(tmp_path / "run", settings, validate=validation())
    assert (summary.steps, summary.best_dice, summary.best_step) == (10, 0.5, 4)
    assert len(losses(tmp_path / "run")) == 10
    _, again = train(tmp_path / "run", settings, validate=lambda model: pytest.fail("the run had ended"))
    assert (again.steps, again.best_step) == (10, 4)

    calls, left = iter(range(100)), iter(scores)

    def interrupt(logits, batch):
        if next(calls) == 6:
            signal.raise_signal(signal.SIGINT)
        return cross_entropy(logits, batch)

    with pytest.raises(Stopped, match="step 7"):
        train(tmp_path / "torn", settings, objective=interrupt, validate=lambda model: {"mean": next(left)})
    _, resumed = train(tmp_path / "torn", settings, validate=lambda model: {"mean": next(left)})
    assert (resumed.steps, resumed.best_dice, resumed.best_step) == (10, 0.5, 4)
    assert losses(tmp_path / "run") == losses(tmp_path / "torn")


def test_a_run_killed_at_once_continues_exactly(tmp_path):
    """kill -9 while it trains: the restart ends with the weights of a run that was never killed."""
    settings = Training(steps=60, validate_every=5)
    whole, _ = train(tmp_path / "whole", settings)
    program = f"""
        import pathlib, sys, time
        sys.path.insert(0, {str(Path(__file__).parents[1])!r})
        from helpers.tiny_training import Training, cross_entropy, train
        def slow(logits, batch):
            time.sleep(0.05)
            return cross_entropy(logits, batch)
        train(pathlib.Path({str(tmp_path / "torn")!r}), Training(steps=60, validate_every=5), slow)
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


def test_many_scattered_non_finite_steps_stop_the_run_too(tmp_path):
    calls = iter(range(1000))

    def sometimes(logits, batch):
        return {"loss": cross_entropy(logits, batch)["loss"] * (float("nan") if next(calls) % 2 else 1.0)}

    settings = Training(steps=400, validate_every=1000)  # 5 % of 400 are 20
    with pytest.raises(SamkdError, match=r"21 in all \(step 42 of 400\)"):
        train(tmp_path / "run", settings, objective=sometimes)


def test_a_gradient_that_is_not_finite_is_skipped_though_the_loss_is(tmp_path):
    calls = iter(range(100))

    def infinite_slope(logits, batch):
        loss = cross_entropy(logits, batch)["loss"]
        return {"loss": loss + (logits - logits.detach()).abs().sum().sqrt() if next(calls) == 1 else loss}

    net, summary = train(tmp_path / "run", Training(steps=4, validate_every=4), objective=infinite_slope)
    assert summary.skipped == 1 and all(np.isfinite(losses(tmp_path / "run")))
    assert all(torch.isfinite(parameter).all() for parameter in net.parameters())


@pytest.mark.parametrize("damage", ["truncate", "flip"])
def test_a_broken_state_is_refused(tmp_path, damage):
    settings = Training(steps=4, validate_every=2)
    train(tmp_path / "run", settings)
    state = tmp_path / "run" / "state" / "last.safetensors"
    content = bytearray(state.read_bytes())
    state.write_bytes(content[:100] if damage == "truncate" else b"\xff" * 8 + content[8:])
    with pytest.raises(IntegrityError, match="not a readable training state"):
        train(tmp_path / "run", settings)


def test_weights_that_are_not_finite_end_the_run_and_leave_the_last_good_ones(tmp_path):
    """Finite losses and gradients do not keep a buffer, or a weight beyond the largest number, from going astray."""
    net, calls = network(), iter(range(100))
    parameters = dict(net.named_parameters())
    weight, bias = parameters["0.weight"], parameters["3.bias"]

    def astray(logits, batch):
        if next(calls) == 4:
            with torch.no_grad():
                weight[0] = float("nan")
            return {"loss": bias.sum()}
        return cross_entropy(logits, batch)

    scores = iter([0.5, 0.6, 0.7])
    settings = Training(steps=6, validate_every=2)
    with pytest.raises(SamkdError, match=r"NaN or infinity in 0\.weight.*lower training\.learning_rate"):
        train(tmp_path / "run", settings, objective=astray, validate=lambda model: {"mean": next(scores)}, net=net)
    for path in ("weights.safetensors", "state/last.safetensors"):
        assert all(torch.isfinite(tensor).all() for tensor in load_file(tmp_path / "run" / path).values())
    assert not [path for path in (tmp_path / "run").rglob("*") if "tmp" in path.name]
