"""Folders of runs whose configuration is more than a run keeps."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from omegaconf import OmegaConf

from benchmarks.malicious.canary import MaliciousFile, ReadCall, code
from regnet_lab.evaluation.setup import set_up_evaluation


def evaluate(run: Path) -> None:
    """As ``python evaluate.py run=<run>``."""
    metrics = {"_target_": "regnet_lab.metrics.score_full", "_partial_": True}
    cfg = {"run": str(run), "submission": None, "trusted_packages": [], "metrics": metrics}
    set_up_evaluation(OmegaConf.create(cfg | {"checkpoint": "best", "split": "test", "name": "x"}))


def run_folder(text: str, folder: Path, canary: Path) -> ReadCall:
    """A run with this configuration, judged."""
    filled = text.replace("CANARY", str(canary)).replace("CODE", json.dumps(code(canary)))
    (folder / "config.yaml").write_text(filled, encoding="utf-8")
    return partial(evaluate, folder)


def runs() -> Iterator[tuple[str, MaliciousFile]]:
    """Folders of runs."""
    head = "folder: somewhere\nndim: 2\n"
    call = "_target_: {}, _args_: [CANARY]"
    texts = {
        "os.mkdir as data": head + f"data: {{{call.format('os.mkdir')}}}",
        "os.mkdir, which the run itself allows": head
        + f"allow: [os, posix]\ndata: {{{call.format('os.mkdir')}}}",
        "a module of ours that imports os": head
        + f"data: {{{call.format('regnet_lab.data.preprocessing.cache.os.mkdir')}}}",
        "YAML tag object/apply": head + "data: !!python/object/apply:os.mkdir [CANARY]",
        "YAML tag object/new": head + "data: !!python/object/new:os.mkdir [CANARY]",
        "YAML tag name": head + "data: !!python/name:os.mkdir",
        "YAML tag of a path": head + "data: !!python/object/apply:pathlib.PosixPath [CANARY]",
        "an environment variable": head + "data: {_target_: '${oc.env:HOME}'}",
        "an interpolation spelt in hexadecimal": head + 'data: {_target_: "\\x24{oc.env:HOME}"}',
        "an escaped oc.create": head
        + "data: {_target_: regnet_lab.data.datamodule.PairDataModule, "
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
