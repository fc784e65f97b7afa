"""Harmful files from strangers, and whether anything of theirs runs.

``python benchmarks/disguises.py`` prints a row for each: how it was disguised, what was said.
Every one tries to make a folder, the canary; ``tests/test_safety.py`` goes through the same list.
"""

import io
import json
import os
import pickle
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf

from regnet_lab.build import build
from regnet_lab.data.io import decode
from regnet_lab.errors import UserError
from regnet_lab.evaluation import judged
from regnet_lab.report.volumes import kept as kept_case
from regnet_lab.submission.archive import files
from regnet_lab.submission.stored import npz_array
from regnet_lab.transforms import read_transform
from regnet_lab.weights import read_weights

Victim = Callable[[], object]
Disguise = Callable[[Path, Path], Victim]  # folder to prepare, canary -> what its victim does

TARGETS = (  # each would make the canary if it were called
    "os.mkdir",
    "posix.mkdir",
    "regnet_lab.data.io.os.mkdir",
    "regnet_lab.data.cache.os.mkdir",
    "regnet_lab.report.gather.os.mkdir",
    "regnet_lab.durable.os.mkdir",
    "torch.nn.modules.module.torch.os.mkdir",
    "pytorch_lightning.trainer.trainer.os.mkdir",
    "regnet_lab.data.cache.Path.mkdir",
    "pathlib.Path.mkdir",
    "regnet_lab.data.cache.FolderCache.__init__.__globals__",
)
CODE = (  # each would run the code
    "builtins.eval",
    "builtins.exec",
    "regnet_lab.data.io.__builtins__.eval",
    "regnet_lab.models.eval",
    "timeit.timeit",
    "torch._dynamo.utils.exec",
)
PICKLES = (  # each would unpickle a file
    "torch.load",
    "torch.hub.load_state_dict_from_url",
    "torch.nn.modules.module.torch.load",
    "regnet_lab.weights.torch.load",
    "regnet_lab.weights.pickle.load",
    "regnet_lab.module.RegistrationModule.load_from_checkpoint",
    "pytorch_lightning.LightningModule.load_from_checkpoint",
    "numpy.load",
)
OTHERS = (  # ways round: what calls, imports, or writes what it is told
    "functools.partial",
    "hydra.utils.call",
    "hydra.utils.instantiate",
    "hydra.utils.get_method",
    "regnet_lab.build.build",
    "regnet_lab.build.instantiate",
    "importlib.import_module",
    "subprocess.Popen",
    "torch.utils.cpp_extension.load_inline",
    "pytorch_lightning.cli.LightningCLI",
    "pytorch_lightning.utilities.model_summary.summarize",
    "regnet_lab.data.dirlab.write_aside",
    "regnet_lab.data.cache.write",
    "regnet_lab.data.facts.remember",
    "regnet_lab.report.files.write_text",
    "regnet_lab_evil.models.Net",
    "regnet_lab.models.Identity.__class__",
    "regnet_lab.models.Identity.__init__",
)


class Canary:
    """Makes a folder when it is unpickled."""

    def __init__(self, how: Callable, *arguments: object) -> None:
        self.how = how, arguments

    def __reduce__(self) -> tuple:
        return self.how


def code(canary: Path) -> str:
    """Python that makes the canary."""
    return f"__import__('os').mkdir({str(canary)!r})"


def pickled(canary: Path) -> Iterator[tuple[str, object]]:
    """The canary in several pickles."""
    yield "os.mkdir", Canary(os.mkdir, str(canary))
    yield "os.system", Canary(os.system, f"mkdir {canary}")
    yield "builtins.eval", Canary(eval, code(canary))
    yield "builtins.exec", Canary(exec, code(canary))
    yield "functools.partial", Canary(partial(os.mkdir, str(canary)))
    yield "getattr", Canary(getattr(os, "makedirs"), str(canary))  # noqa: B009
    yield "build", Canary(build, OmegaConf.create({"_target_": "os.mkdir"}))
    yield "numpy", Canary(np.load, str(canary))


def configured(config: object, _: Path, canary: Path) -> Victim:
    """A configuration; ``CANARY`` in it is the canary's path."""
    text = OmegaConf.to_yaml(OmegaConf.create(config)).replace("CANARY", str(canary))
    return partial(build, OmegaConf.create(text))


def unpickled(target: str, folder: Path, canary: Path) -> Victim:
    """A configuration that has a file unpickled."""
    path = folder / "evil.ckpt"
    path.write_bytes(pickle.dumps(Canary(os.mkdir, str(canary))))
    return partial(build, OmegaConf.create({"_target_": target, "_args_": [str(path)]}))


def configurations() -> Iterator[tuple[str, Disguise]]:
    """Targets in a configuration."""
    for target in TARGETS:
        yield target, partial(configured, {"_target_": target, "_args_": ["CANARY"]})
    for target in CODE:
        call = {"_target_": target, "_args_": ["__import__('os').mkdir('CANARY')"]}
        yield target, partial(configured, call)
    for target in PICKLES:
        yield target, partial(unpickled, target)
    for target in OTHERS:
        yield target, partial(configured, {"_target_": target, "_args_": ["os.mkdir", "CANARY"]})
    hidden: dict[str, Any] = {"_target_": "os.mkdir", "_args_": ["CANARY"]}
    places: dict[str, object] = {
        "in an argument": {"model": hidden},
        "in a list in an argument": {"model": [[hidden]]},
        "in _args_": {"_args_": [hidden]},
        "partial": {"model": hidden | {"_partial_": True}},
        "below _recursive_: false": {"_recursive_": False, "model": hidden},
        "in an interpolation": {"model": "${shelf}", "shelf": hidden},
        "in oc.create": {"model": "${oc.create:{_target_: os.mkdir, _args_: [CANARY]}}"},
        "in oc.decode": {"model": "${oc.decode:'{_target_: os.mkdir, _args_: [CANARY]}'}"},
        "in an escaped oc.create": {
            "model": "\\${oc.create:{_target_: os.mkdir, _args_: [CANARY]}}"
        },
        "in an escaped oc.decode": {
            "model": "\\${oc.decode:'{_target_: os.mkdir, _args_: [CANARY]}'}"
        },
    }
    for place, config in places.items():
        outer = {"_target_": "regnet_lab.models.Diffeomorphic", **config}  # type: ignore[dict-item]
        yield f"os.mkdir {place}", partial(configured, outer)


def judge(run: Path) -> None:
    """As ``python evaluate.py run=<run>``."""
    metrics = {"_target_": "regnet_lab.metrics.strict", "_partial_": True}
    cfg = {"run": str(run), "submission": None, "allow": [], "metrics": metrics}
    judged(OmegaConf.create(cfg | {"checkpoint": "best", "split": "test", "name": "x"}))


def run_folder(text: str, folder: Path, canary: Path) -> Victim:
    """A run with this configuration, judged."""
    filled = text.replace("CANARY", str(canary)).replace("CODE", json.dumps(code(canary)))
    (folder / "config.yaml").write_text(filled, encoding="utf-8")
    return partial(judge, folder)


def runs() -> Iterator[tuple[str, Disguise]]:
    """Folders of runs."""
    head = "folder: somewhere\nndim: 2\n"
    call = "_target_: {}, _args_: [CANARY]"
    texts = {
        "os.mkdir as data": head + f"data: {{{call.format('os.mkdir')}}}",
        "os.mkdir, which the run itself allows": head
        + f"allow: [os, posix]\ndata: {{{call.format('os.mkdir')}}}",
        "a module of ours that imports os": head
        + f"data: {{{call.format('regnet_lab.data.cache.os.mkdir')}}}",
        "YAML tag object/apply": head + "data: !!python/object/apply:os.mkdir [CANARY]",
        "YAML tag object/new": head + "data: !!python/object/new:os.mkdir [CANARY]",
        "YAML tag name": head + "data: !!python/name:os.mkdir",
        "YAML tag of a path": head + "data: !!python/object/apply:pathlib.PosixPath [CANARY]",
        "an environment variable": head + "data: {_target_: '${oc.env:HOME}'}",
        "an interpolation spelt in hexadecimal": head + 'data: {_target_: "\\x24{oc.env:HOME}"}',
        "an escaped oc.create": head
        + "data: {_target_: regnet_lab.data.module.PairModule, "
        + "dataset: '\\${oc.create:{_target_: os.mkdir, _args_: [CANARY]}}'}",
        "a key that is an interpolation": head + "'${oc.env:HOME}': 1\ndata: {}",
        "anchors that unfold a billionfold": head
        + "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10)),
        "two megabytes of YAML": head + "x: [" + "y, " * 700000 + "]",
        "a folder that is no text": "folder: [1, 2]\nndim: 2",
        "no YAML": "\t{[}",
        "a list": "- 1\n- 2",
    }
    for name, text in texts.items():
        yield f"run: {name}", partial(run_folder, text)


def saved(content: object, folder: Path, _: Path) -> Victim:
    """A checkpoint with this content."""
    path = folder / "evil.ckpt"
    torch.save(content, path)
    return partial(read_weights, path)


def canned(number: int, wrap: Callable[[object], object], folder: Path, canary: Path) -> Victim:
    """A checkpoint with one of the pickles."""
    evil = list(pickled(canary))[number][1]
    return saved(wrap(evil), folder, canary)


def raw(protocol: int, folder: Path, canary: Path) -> Victim:
    """A pickle that is called a checkpoint."""
    path = folder / "evil.ckpt"
    path.write_bytes(pickle.dumps({"state_dict": Canary(os.mkdir, str(canary))}, protocol))
    return partial(read_weights, path)


def legacy(folder: Path, canary: Path) -> Victim:
    """A checkpoint of the format that is no zip."""
    path = folder / "evil.ckpt"
    content = {"state_dict": {"a": torch.zeros(2), "b": Canary(os.mkdir, str(canary))}}
    torch.save(content, path, _use_new_zipfile_serialization=False)
    return partial(read_weights, path)


def repacked(change: Callable[[str, bytes], bytes], method: int, folder: Path, _: Path) -> Victim:
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


def checkpoints() -> Iterator[tuple[str, Disguise]]:
    """Checkpoints."""
    wraps: dict[str, Callable[[object], object]] = {
        "as the weights": lambda evil: {"state_dict": evil},
        "among the weights": lambda evil: {"state_dict": {"a": torch.zeros(2), "b": evil}},
        "beside the weights": lambda evil: {"state_dict": {}, "optimizer_states": [evil]},
        "as the whole": lambda evil: evil,
    }
    for number, (how, _) in enumerate(pickled(Path())):
        yield (
            f"checkpoint: {how} among the weights",
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


def array(victim: Callable[[Path], object], name: str, folder: Path, canary: Path) -> Victim:
    """A pickle where an array belongs."""
    evil = np.empty(1, object)
    evil[0] = Canary(os.mkdir, str(canary))
    path = folder / name
    if name.endswith(".npy"):
        np.save(path, evil, allow_pickle=True)
    else:
        np.savez(path, evil)
    return partial(victim, path)


def submitted(path: Path) -> None:
    """Read as a file of a submission."""
    try:
        npz_array(path.read_bytes(), 10**6)
    except ValueError as error:  # as its caller turns into a sentence
        raise UserError(str(error)) from error


def zipped(name: str, folder: Path, _: Path) -> Victim:
    """A submission with a file of this name."""
    path = folder / "evil.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(zipfile.ZipInfo(name), b"harm")
    return partial(files, path)


def linked(folder: Path, canary: Path) -> Victim:
    """A submission in which a file is a symbolic link."""
    path, member = folder / "evil.zip", zipfile.ZipInfo("disp_0001_0002.npz")
    member.external_attr = 0o120777 << 16  # a symbolic link
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, str(canary.parent))
    return partial(files, path)


def arrays() -> Iterator[tuple[str, Disguise]]:
    """Arrays and archives."""
    yield "image: a pickle in .npy", partial(array, decode, "evil.npy")
    yield "transform: a pickle in .npz", partial(array, read_transform, "disp_1_2.npz")
    yield "submission: a pickle in .npz", partial(array, submitted, "disp_1_2.npz")
    yield "report: a pickle in .npz", partial(array, kept_case, "best.npz")
    for name in ("../evil", "a/../../evil", "/tmp/evil", "..\\evil", "C:\\evil", "\\\\host\\evil"):
        yield f"zip: {name}", partial(zipped, name)
    yield "zip: a symbolic link", linked


def disguises() -> dict[str, Disguise]:
    """All of them by name."""
    return dict([*configurations(), *runs(), *checkpoints(), *arrays()])


def told(disguise: Disguise) -> tuple[str, bool]:
    """What was said of it, and whether anything ran."""
    with tempfile.TemporaryDirectory() as folder:
        canary = Path(folder, "canary")
        (place := Path(folder, "place")).mkdir()
        victim = disguise(place, canary)
        try:
            victim()
        except UserError as error:
            said = " ".join(str(error).replace(str(place), "...").split())
        else:
            said = ""
        return said, canary.exists()


def main() -> None:
    """Print the table; exit code 1 if anything ran or was not refused."""
    results = {name: told(disguise) for name, disguise in disguises().items()}
    print("| disguise | refused with |\n|---|---|")
    for name, (said, _) in results.items():
        print(f"| `{name}` | {said[:150] or 'NOT REFUSED'} |")
    ran = sum(ran for _, ran in results.values())
    passed = sum(not said for said, _ in results.values())
    print(f"\n{len(results)} tried, {passed} not refused, {ran} ran")
    sys.exit(bool(ran or passed))


if __name__ == "__main__":
    main()
