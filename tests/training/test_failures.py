"""What befalls a run through nobody's fault is told in a sentence."""

import errno
import os
import signal
from functools import partial

import pytest
import torch
from torch.utils.data import DataLoader, Subset

from regnet_lab.data.augmentation import Augmented
from regnet_lab.data.case import Case, CasePairs
from regnet_lab.data.datamodule import PairModule
from regnet_lab.data.datasets.mixture import Mixed
from regnet_lab.data.worker_monitor import Watched, called
from regnet_lab.errors import UserError
from regnet_lab.training.failures import explained, less


def made(fixed, moving, deaths=()):
    if fixed.name in deaths:
        deaths[fixed.name]()
    one = torch.zeros(1, 9, 11)
    return {"fixed": one, "moving": one, "spacing": torch.ones(2), "name": fixed.name}


def cases(tmp_path, count=8):
    return [Case(f"{n}", tmp_path / f"{n}.nii.gz") for n in range(count)]


def listed(tmp_path, split="train", **options):
    names = cases(tmp_path)
    return CasePairs([(c, names[0]) for c in names], partial(made, **options))


DEATHS = {
    "exits": lambda: os._exit(3),
    "is killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
}


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("how", DEATHS)
def test_a_loader_s_death_names_what_it_was_reading(how, split, tmp_path):
    dataset = partial(listed, tmp_path, deaths={"5": DEATHS[how]})
    module = PairModule(dataset, workers=2)
    loader = module.train_dataloader() if split == "train" else module.val_dataloader()
    with pytest.raises(UserError) as caught, explained("", "go on"):
        list(loader)
    said = str(caught.value)
    assert f"{tmp_path / '5.nii.gz'} and {tmp_path / '0.nii.gz'}" in said
    assert "data.workers" in said
    assert said.endswith("go on.")
    assert "\n" not in said


def test_loading_is_the_same_with_and_without_processes(tmp_path):
    alone, together = (PairModule(partial(listed, tmp_path), workers=n) for n in (0, 2))
    for split in ("train_dataloader", "val_dataloader"):
        names = [[p["name"] for p in getattr(m, split)()] for m in (alone, together)]
        assert names[0] == names[1]
    assert isinstance(together.val_dataloader().dataset, Watched)


def test_a_pair_is_called_by_its_files_wherever_it_lies(tmp_path):
    plain = listed(tmp_path)
    fifth = f"{tmp_path / '5.nii.gz'} and {tmp_path / '0.nii.gz'}"
    assert called(plain, 5) == fifth
    assert called(Subset(plain, [3, 5]), 1) == fifth
    assert called(Augmented(Subset(plain, [3, 5]), None, 0), 1) == fifth
    assert called(Mixed("val", {"a": partial(listed, tmp_path)}), 5) == fifth
    assert called(DataLoader([1, 2]).dataset, 1) == "pair 1"


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB."),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be ..."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: ..."),
        MemoryError(),
    ],
)
def test_memory_that_does_not_suffice_says_what_to_lower(error, composed):
    cfg = composed("train", "data.batch_size=4")
    sentence = r"lower data\.batch_size, now 4.*bf16"
    with pytest.raises(UserError, match=sentence) as caught, explained(less(cfg), "go on"):
        raise error
    assert "\n" not in str(caught.value)


def test_what_to_lower_is_what_can_be_lowered(composed):
    single = less(composed("train", "data.batch_size=1", "trainer.precision=bf16-mixed"))
    assert "batch_size" not in single
    assert "bf16" not in single
    assert "batch_size" not in less(composed("evaluate", "data=synthetic"))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_says_what_is_full(number):
    with pytest.raises(UserError, match=r"events.*make room, then go on"), explained("", "go on"):
        raise OSError(number, os.strerror(number), "events")


def test_an_operation_without_a_fixed_order_is_named():
    error = RuntimeError("some_backward_cuda does not have a deterministic implementation, but")
    sentence = r"some_backward_cuda.*deterministic=warn"
    with pytest.raises(UserError, match=sentence), explained("", ""):
        raise error


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), FileNotFoundError(2, "", "a")])
def test_what_is_a_fault_of_ours_is_not_dressed_up(error):
    with pytest.raises(type(error)) as caught, explained("", ""):
        raise error
    assert caught.value is error
