import io

import pytest
import torch

from regnet_lab.errors import UserError
from regnet_lab.training.lr_schedulers import Staircase


def optimizer(lr=3.0):
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)


def rates(schedule, epochs):
    for _ in range(epochs):
        yield schedule.get_last_lr()[0]
        schedule.optimizer.step()
        schedule.step()


def published(fraction):
    """The Pyramid CNN's rate by the share of training done, of a first rate of 1."""
    steps = [(0.1, 1), (0.2, 2), (0.3, 4), (0.4, 8), (0.5, 16), (0.6, 2), (0.7, 4), (0.8, 8)]
    return 1 / next((divisor for end, divisor in steps if fraction < end), 16)


@pytest.mark.parametrize("epochs", [20, 100, 500])
def test_the_default_is_the_published_schedule(epochs):
    expected = [3 * published((10 * e // epochs) / 10 + 0.05) for e in range(epochs)]
    assert list(rates(Staircase(optimizer(), epochs), epochs)) == pytest.approx(expected)


def test_parts_are_as_equal_as_epochs_allow_and_the_last_one_holds():
    found = list(rates(Staircase(optimizer(1.0), 5, [1, 2]), 7))
    assert found == [1, 1, 1, 0.5, 0.5, 0.5, 0.5]


def test_it_goes_on_where_it_was():
    first = Staircase(optimizer(), 20)
    list(rates(first, 11))
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = Staircase(optimizer(), 20)
    second.load_state_dict(torch.load(file, weights_only=True))
    second.step()
    first.step()
    assert second.get_last_lr() == first.get_last_lr() == [0.75]


@pytest.mark.parametrize(("epochs", "divisors"), [(-1, [1]), (10, []), (10, [1, 0])])
def test_what_makes_no_sense_is_named(epochs, divisors):
    with pytest.raises(UserError, match=f"epochs={epochs}"):
        Staircase(optimizer(), epochs, divisors)
