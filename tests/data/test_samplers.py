"""The position of a data loader is restored only where no pair is repeated or left out."""

import pytest

from regnet_lab.data.samplers import EpochSampler, ResumableDataLoader
from regnet_lab.errors import CommonError


def make_loader(batch_size):
    return ResumableDataLoader(range(12), batch_size, sampler=EpochSampler(12, 12, seed=0))


def consume(loader, batches):
    return [batch.tolist() for batch, _ in zip(loader, range(batches), strict=False)]


def test_batches_continue_where_they_stopped():
    whole, first, second = make_loader(3), make_loader(3), make_loader(3)
    order = consume(whole, 4)
    assert consume(first, 2) == order[:2]
    state = first.state_dict() | {"consumed": 2}
    second.load_state_dict(state)
    assert consume(second, 4) == order[2:]


def test_another_batch_size_is_refused_within_an_epoch():
    state = make_loader(3).state_dict() | {"consumed": 2}
    with pytest.raises(CommonError, match=r"data.batch_size=3.*data.batch_size=4.*use 3"):
        make_loader(4).load_state_dict(state)


def test_another_number_of_processes_is_refused_within_an_epoch():
    state = make_loader(3).state_dict() | {"consumed": 2, "processes": 2}
    with pytest.raises(CommonError, match=r"processes=2.*processes=1"):
        make_loader(3).load_state_dict(state)


def test_another_batch_size_is_accepted_after_an_epoch():
    state = make_loader(3).state_dict() | {"consumed": 4}
    loader = make_loader(2)
    loader.load_state_dict(state)
    assert loader.sampler.epoch == 1
    assert sorted(i for batch in consume(loader, 6) for i in batch) == list(range(12))
