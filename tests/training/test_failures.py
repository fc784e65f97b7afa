"""Failures of hardware, workers and other processes are explained in one sentence."""

import errno
import os
import signal
from functools import partial

import pytest
import torch
from torch.utils.data import DataLoader, Subset

from regnet_lab.data.augmentation import AugmentedPairs
from regnet_lab.data.case import Case
from regnet_lab.data.datamodule import PairDataModule
from regnet_lab.data.datasets.base import CasePairs, describe_item
from regnet_lab.data.datasets.mixture import Mixture
from regnet_lab.data.worker_monitor import WorkerMonitor
from regnet_lab.errors import UserError
from regnet_lab.training.failures import oom_hint, translate_errors


def made(fixed, moving, deaths=()):
    if fixed.name in deaths:
        deaths[fixed.name]()
    image = torch.zeros(1, 9, 11)
    return {"fixed": image, "moving": image, "spacing": torch.ones(2), "name": fixed.name}


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
@pytest.mark.parametrize("cause", DEATHS)
def test_death_of_a_loading_process_names_its_pair(cause, split, tmp_path):
    dataset = partial(listed, tmp_path, deaths={"5": DEATHS[cause]})
    module = PairDataModule(dataset, num_workers=2)
    loader = module.train_dataloader() if split == "train" else module.val_dataloader()
    with pytest.raises(UserError) as caught, translate_errors("", "go on"):
        list(loader)
    message = str(caught.value)
    assert f"{tmp_path / '5.nii.gz'} and {tmp_path / '0.nii.gz'}" in message
    assert "data.num_workers" in message
    assert message.endswith("go on.")
    assert "\n" not in message


def test_loading_processes_do_not_change_the_order_of_pairs(tmp_path):
    alone, together = (PairDataModule(partial(listed, tmp_path), num_workers=n) for n in (0, 2))
    for split in ("train_dataloader", "val_dataloader"):
        names = [[p["name"] for p in getattr(m, split)()] for m in (alone, together)]
        assert names[0] == names[1]
    assert isinstance(together.val_dataloader().dataset, WorkerMonitor)


def test_pairs_are_named_by_their_files_inside_any_wrapper(tmp_path):
    dataset = listed(tmp_path)
    fifth = f"{tmp_path / '5.nii.gz'} and {tmp_path / '0.nii.gz'}"
    assert describe_item(dataset, 5) == fifth
    assert describe_item(Subset(dataset, [3, 5]), 1) == fifth
    assert describe_item(AugmentedPairs(Subset(dataset, [3, 5]), None, 0), 1) == fifth
    assert describe_item(Mixture("val", {"a": partial(listed, tmp_path)}), 5) == fifth
    assert describe_item(DataLoader([1, 2]).dataset, 1) == "pair 1"


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB."),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be ..."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: ..."),
        MemoryError(),
    ],
)
def test_out_of_memory_names_settings_to_change(error, composed):
    cfg = composed("train", "data.batch_size=4")
    sentence = r"lower data\.batch_size, now 4.*bf16"
    with (
        pytest.raises(UserError, match=sentence) as caught,
        translate_errors(oom_hint(cfg), "go on"),
    ):
        raise error
    assert "\n" not in str(caught.value)


def test_memory_hint_has_only_changes_that_are_possible(composed):
    single = oom_hint(composed("train", "data.batch_size=1", "trainer.precision=bf16-mixed"))
    assert "batch_size" not in single
    assert "bf16" not in single
    assert "batch_size" not in oom_hint(composed("evaluate", "data=synthetic"))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_full_disk_names_the_file(number):
    with (
        pytest.raises(UserError, match=r"events.*make room, then go on"),
        translate_errors("", "go on"),
    ):
        raise OSError(number, os.strerror(number), "events")


def test_nondeterministic_operation_is_named():
    error = RuntimeError("some_backward_cuda does not have a deterministic implementation, but")
    sentence = r"some_backward_cuda.*deterministic=warn"
    with pytest.raises(UserError, match=sentence), translate_errors("", ""):
        raise error


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), FileNotFoundError(2, "", "a")])
def test_other_errors_pass_unchanged(error):
    with pytest.raises(type(error)) as caught, translate_errors("", ""):
        raise error
    assert caught.value is error
