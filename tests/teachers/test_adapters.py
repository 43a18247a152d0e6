import copy

import pytest
import torch
from torch import nn

from samkd.teachers import build_teacher
from samkd.teachers.freezing import adapter_names, freeze
from samkd.teachers.masam.adapters import Adapter3D, FacT, SharedFactors


def test_adapter3d_zero_init_is_the_identity_and_the_authors_init_is_not():
    torch.manual_seed(0)
    x = torch.randn(6, 2, 3, 8)
    assert torch.equal(Adapter3D(8, 4)(x, 3), x)
    assert not torch.allclose(Adapter3D(8, 4, zero_init=False)(x, 3), x)


def test_adapter3d_mixes_direct_neighbours_of_one_stack_only():
    torch.manual_seed(0)
    adapter = Adapter3D(8, 4, zero_init=False)
    x = torch.randn(2 * 5, 1, 1, 8)
    changed = x.clone()
    changed[2] += torch.randn(8)  # slice 2 of the first stack
    difference = (adapter(changed, 5) - adapter(x, 5)).abs().amax(dim=(1, 2, 3))
    assert (difference > 1e-6).nonzero().flatten().tolist() == [1, 2, 3]


def test_fact_starts_as_the_base_projection_and_never_touches_k():
    torch.manual_seed(0)
    factors = SharedFactors(8, 2)
    fact = FacT(8, factors, scale=0.5, dropout=0.0)
    x = torch.randn(2, 3, 8)
    base = nn.functional.linear(x, fact.weight, fact.bias)
    assert torch.equal(fact(x), base)
    nn.init.normal_(factors.v.weight)
    q, k, v = fact(x).chunk(3, dim=-1)
    base_q, base_k, base_v = base.chunk(3, dim=-1)
    u, up = factors.u.weight, factors.v.weight
    torch.testing.assert_close(q, base_q + 0.5 * x @ (up @ fact.q_sigma.weight @ u).T)
    torch.testing.assert_close(v, base_v + 0.5 * x @ (up @ fact.v_sigma.weight @ u).T)
    assert torch.equal(k, base_k)


def test_fact_drops_out_while_training_only():
    torch.manual_seed(0)
    factors = SharedFactors(8, 4)
    nn.init.normal_(factors.v.weight)
    fact = FacT(8, factors, scale=1.0, dropout=0.5)
    x = torch.randn(4, 8)
    assert not torch.equal(fact(x), fact(x))
    fact.eval()
    assert torch.equal(fact(x), fact(x))


def test_factors_belong_to_the_model_and_follow_a_copy():
    factors = SharedFactors(8, 2)
    model = nn.ModuleDict({"factors": factors, "a": FacT(8, factors, scale=1.0, dropout=0.0)})
    assert sorted(adapter_names(model)) == [
        "a.q_sigma.weight",
        "a.v_sigma.weight",
        "factors.u.weight",
        "factors.v.weight",
    ]
    assert not any(name.startswith("a.") and ".u." in name for name in model.state_dict())
    twin = copy.deepcopy(model)
    nn.init.ones_(twin.get_parameter("factors.v.weight"))
    x = torch.ones(1, 8)
    assert not torch.equal(twin["a"](x), model["a"](x))


def test_freeze_keeps_exactly_what_is_named():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    freeze(model, keep={"1.bias"})
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == ["1.bias"]
    with pytest.raises(AssertionError, match="keep names"):
        freeze(model, keep={"2.bias"})


@pytest.mark.parametrize("name", ["masam", "medsa"])
def test_four_channels_start_as_their_mean_and_their_mix_is_tuned(name: str):
    torch.manual_seed(0)
    sizes = {"backbone": "vit_tiny_p8", "num_classes": 3, "patch": (3, 32, 32)}
    four, grey = (build_teacher(name, in_channels=channels, **sizes).eval() for channels in (4, 1))
    grey.load_state_dict({key: value for key, value in four.state_dict().items() if not key.startswith("to_three.")})
    image = torch.randn(1, 4, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(four(image), grey(image.mean(1, keepdim=True)), atol=1e-4, rtol=1e-4)
    four.freeze_pretrained()
    assert {key for key, p in four.named_parameters() if p.requires_grad and key.startswith("to_three.")} == {
        "to_three.weight",
        "to_three.bias",
    }
