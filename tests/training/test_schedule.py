from itertools import pairwise

import pytest
import torch

from samkd.configs.schema import Training
from samkd.training.schedule import learning_rate, optimizer_of


def rates(**settings) -> list[float]:
    training = Training(learning_rate=settings.pop("learning_rate", 1.0), **settings)
    return [learning_rate(step, training) for step in range(training.steps)]


def test_warm_up_is_linear_and_decay_polynomial():
    result = rates(warmup=4, steps=14)
    assert result[:4] == [0.25, 0.5, 0.75, 1.0]
    assert result[4] == 1.0
    assert result[9] == pytest.approx(0.5**0.9)
    assert 0 < result[-1] < 0.2
    assert result[3:] == sorted(result[3:], reverse=True)
    assert rates(warmup=4, steps=14, power=7)[9] == pytest.approx(0.5**7)


def test_no_warm_up():
    assert rates(learning_rate=2.0, warmup=0, steps=3)[0] == 2.0


def test_exponential_decay_loses_the_same_share_at_every_step_and_constant_none():
    result = rates(warmup=2, steps=12, decay="exponential", final=0.01)
    assert result[2] == 1.0
    ratios = [later / earlier for earlier, later in pairwise(result[2:])]
    assert ratios == pytest.approx([0.01**0.1] * 9)
    assert rates(warmup=2, steps=5, decay="constant") == [0.5, 1, 1, 1, 1]


@pytest.mark.parametrize(("name", "kind"), [("adamw", "AdamW"), ("adam", "Adam"), ("sgd", "SGD")])
def test_the_optimiser_named_gets_what_learns(name, kind):
    layer = torch.nn.Linear(2, 2)
    layer.bias.requires_grad_(False)
    made = optimizer_of(layer.parameters(), Training(steps=1, learning_rate=0.5, weight_decay=0.25, optimizer=name))
    (group,) = made.param_groups
    assert type(made).__name__ == kind and (group["lr"], group["weight_decay"]) == (0.5, 0.25)
    assert len(group["params"]) == 1 and group["params"][0] is layer.weight
