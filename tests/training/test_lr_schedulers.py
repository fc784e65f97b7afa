"""Learning-rate schedulers."""

import io

import pytest
import torch

from regnet_lab.errors import UserError
from regnet_lab.training.lr_schedulers import PiecewiseConstantLR


def optimizer(lr=3.0):
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)


def rates(schedule, epochs):
    for _ in range(epochs):
        yield schedule.get_last_lr()[0]
        schedule.optimizer.step()
        schedule.step()


def published(fraction):
    """Return the Pyramid CNN's learning rate after a fraction of the training; the first is 1."""
    steps = [(0.1, 1), (0.2, 2), (0.3, 4), (0.4, 8), (0.5, 16), (0.6, 2), (0.7, 4), (0.8, 8)]
    return 1 / next((divisor for end, divisor in steps if fraction < end), 16)


@pytest.mark.parametrize("epochs", [20, 100, 500])
def test_the_default_is_the_published_schedule(epochs):
    expected = [3 * published((10 * e // epochs) / 10 + 0.05) for e in range(epochs)]
    assert list(rates(PiecewiseConstantLR(optimizer(), epochs), epochs)) == pytest.approx(expected)


def test_parts_have_equal_lengths_and_the_last_one_continues():
    values = list(rates(PiecewiseConstantLR(optimizer(1.0), 5, [1, 2]), 7))
    assert values == [1, 1, 1, 0.5, 0.5, 0.5, 0.5]


def test_state_is_restored():
    first = PiecewiseConstantLR(optimizer(), 20)
    list(rates(first, 11))
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = PiecewiseConstantLR(optimizer(), 20)
    second.load_state_dict(torch.load(file, weights_only=True))
    second.step()
    first.step()
    assert second.get_last_lr() == first.get_last_lr() == [0.75]


@pytest.mark.parametrize(("epochs", "divisors"), [(-1, [1]), (10, []), (10, [1, 0])])
def test_invalid_settings_are_named(epochs, divisors):
    with pytest.raises(UserError, match=f"epochs={epochs}"):
        PiecewiseConstantLR(optimizer(), epochs, divisors)
