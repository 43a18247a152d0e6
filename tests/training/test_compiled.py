"""Compiled training steps: the same function and the same file, and one line where nothing can be compiled.

Inductor takes minutes here, so that `aot_eager`, which traces and differentiates as it does, stands for it.
"""

import pytest
import torch
from helpers.tiny_training import Step, cross_entropy, losses, network, train
from safetensors.torch import load_file

from samkd.configs.schema import Training
from samkd.errors import UsageError
from samkd.training import compiled
from samkd.training.memory_planner import AUTO
from samkd.training.step import SupervisedStep

STEP = SupervisedStep(dice_weight=1.0, cross_entropy_weight=1.0)
SETTINGS = Training(steps=3, validate_every=3, batch=2)


@pytest.fixture
def traced(monkeypatch):
    """The graphs that were compiled, of the backend that stands for inductor."""
    graphs = []
    backend = torch._dynamo.lookup_backend("aot_eager")  # type: ignore[attr-defined]

    def compile_and_count(graph, inputs):
        graphs.append(graph)
        return backend(graph, inputs)

    monkeypatch.setattr(compiled, "BACKEND", compile_and_count)
    torch._dynamo.reset()
    yield graphs
    torch._dynamo.reset()


def plain_network() -> torch.nn.Module:
    """Without dropout, whose draws a compiled pass makes in another order."""
    net = network()
    net[2] = torch.nn.Identity()  # type: ignore[operator]
    return net


@pytest.mark.slow
def test_a_compiled_run_learns_the_same_and_its_files_have_the_networks_names(tmp_path, traced):
    """With a memory plan, too, whose measured steps are compiled as the run's are."""
    train(tmp_path / "eager", SETTINGS, net=plain_network())
    assert not traced
    train(tmp_path / "compiled", SETTINGS.model_copy(update={"compile": True}), net=plain_network())
    assert len(traced) == 1
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "eager"), rel=1e-5)
    one, two = (load_file(tmp_path / name / "weights.safetensors") for name in ("eager", "compiled"))
    assert one.keys() == two.keys() and all(torch.allclose(one[name], two[name], atol=1e-6) for name in one)
    planned = SETTINGS.model_copy(update={"compile": True, "steps": 1})
    train(tmp_path / "planned", planned, net=plain_network(), vram=AUTO)
    assert losses(tmp_path / "planned") == pytest.approx(losses(tmp_path / "eager")[:1], rel=1e-5)


def test_without_a_compiler_one_line_says_so(monkeypatch, tmp_path):
    def refuse(graph, inputs):
        raise RuntimeError("No working C++ compiler found\nand much more")

    monkeypatch.setattr(compiled, "BACKEND", refuse)
    with pytest.raises(UsageError, match=r"torch.compile does not work here .*No working C.*set it to false") as caught:
        compiled.check_compile(torch.device("cpu"), STEP)
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value)
    with pytest.raises(UsageError, match=r"torch.compile does not work here"):
        train(tmp_path / "run", SETTINGS.model_copy(update={"compile": True}), cross_entropy)
    torch._dynamo.reset()


def test_embeddings_are_recorded_by_hooks_that_no_compiled_network_calls():
    with pytest.raises(UsageError, match="embeddings"):
        compiled.check_compile(torch.device("cpu"), Step(cross_entropy, helper=torch.nn.Linear(1, 1)))


def test_a_config_without_the_key_is_recorded_as_before():
    assert "compile" not in Training(steps=1).model_dump(mode="json")
    assert Training(steps=1, compile=True).model_dump(mode="json")["compile"] is True
