"""Checkpoints that hold code, or are not what they say."""

import io
import os
import pickle
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch

from benchmarks.malicious.canary import Canary, MaliciousFile, ReadCall, pickled
from regnet_lab.config.checkpoints import read_weights


def saved(content: object, folder: Path, _: Path) -> ReadCall:
    """A checkpoint with this content."""
    path = folder / "evil.ckpt"
    torch.save(content, path)
    return partial(read_weights, path)


def canned(number: int, wrap: Callable[[object], object], folder: Path, canary: Path) -> ReadCall:
    """A checkpoint with one of the pickles."""
    evil = list(pickled(canary))[number][1]
    return saved(wrap(evil), folder, canary)


def raw(protocol: int, folder: Path, canary: Path) -> ReadCall:
    """A pickle that is called a checkpoint."""
    path = folder / "evil.ckpt"
    path.write_bytes(pickle.dumps({"state_dict": Canary(os.mkdir, str(canary))}, protocol))
    return partial(read_weights, path)


def legacy(folder: Path, canary: Path) -> ReadCall:
    """A checkpoint of the format that is no zip."""
    path = folder / "evil.ckpt"
    content = {"state_dict": {"a": torch.zeros(2), "b": Canary(os.mkdir, str(canary))}}
    torch.save(content, path, _use_new_zipfile_serialization=False)
    return partial(read_weights, path)


def repacked(change: Callable[[str, bytes], bytes], method: int, folder: Path, _: Path) -> ReadCall:
    """A sound checkpoint whose members are changed or packed in another way."""
    sound, path = io.BytesIO(), folder / "evil.ckpt"
    torch.save({"state_dict": {"a": torch.zeros(100000)}}, sound)
    with zipfile.ZipFile(sound) as old, zipfile.ZipFile(path, "w", method) as new:
        for member in old.namelist():
            new.writestr(member, change(member, old.read(member)))
    return partial(read_weights, path)


def huge(member: str, content: bytes) -> bytes:
    """The tensor's size a billion times as large."""
    return (
        content.replace(b"J\xa0\x86\x01\x00", b"J\xff\xff\xff\x7f") if "pkl" in member else content
    )


def checkpoints() -> Iterator[tuple[str, MaliciousFile]]:
    """Checkpoints."""
    wraps: dict[str, Callable[[object], object]] = {
        "as the weights": lambda evil: {"state_dict": evil},
        "among the weights": lambda evil: {"state_dict": {"a": torch.zeros(2), "b": evil}},
        "beside the weights": lambda evil: {"state_dict": {}, "optimizer_states": [evil]},
        "as the whole": lambda evil: evil,
    }
    for number, (pickle_name, _) in enumerate(pickled(Path())):
        yield (
            f"checkpoint: {pickle_name} among the weights",
            partial(canned, number, wraps["among the weights"]),
        )
    for place in ("as the weights", "beside the weights", "as the whole"):
        yield f"checkpoint: os.mkdir {place}", partial(canned, 0, wraps[place])
    for protocol in (0, 2, 4):
        yield f"checkpoint: plain pickle of protocol {protocol}", partial(raw, protocol)
    yield "checkpoint: the format before torch 1.6", legacy
    yield "checkpoint: a whole network", partial(saved, torch.nn.Linear(2, 2))
    yield "checkpoint: weights that are text", partial(saved, {"state_dict": {"a": "b"}})
    yield "checkpoint: a list", partial(saved, [1, 2])
    yield (
        "checkpoint: members that unfold",
        partial(repacked, lambda _, content: content, zipfile.ZIP_DEFLATED),
    )
    yield "checkpoint: a tensor larger than the file", partial(repacked, huge, zipfile.ZIP_STORED)
