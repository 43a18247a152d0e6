import pytest

from samkd.training.schedule import learning_rate


def test_warm_up_is_linear_and_decay_polynomial():
    rates = [learning_rate(step, base=1.0, warmup=4, total=14) for step in range(14)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4] == 1.0
    assert rates[9] == pytest.approx(0.5**0.9)
    assert 0 < rates[-1] < 0.2
    assert rates[3:] == sorted(rates[3:], reverse=True)


def test_no_warm_up():
    assert learning_rate(0, base=2.0, warmup=0, total=3) == 2.0
