"""Arrays that are pickles, and archives that reach beyond their folder."""

import os
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.malicious.canary import Canary, MaliciousFile, ReadCall
from regnet_lab.data.io.images import decode_image
from regnet_lab.errors import UserError
from regnet_lab.evaluation.html_report.volumes import read_example_case as kept_case
from regnet_lab.evaluation.submission.archive import list_files
from regnet_lab.evaluation.submission.serialization import decode_npz
from regnet_lab.spatial import read_transform


def array(victim: Callable[[Path], object], name: str, folder: Path, canary: Path) -> ReadCall:
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
        decode_npz(path.read_bytes(), 10**6)
    except ValueError as error:  # as its caller turns into a sentence
        raise UserError(str(error)) from error


def zipped(name: str, folder: Path, _: Path) -> ReadCall:
    """A submission with a file of this name."""
    path = folder / "evil.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(zipfile.ZipInfo(name), b"harm")
    return partial(list_files, path)


def linked(folder: Path, canary: Path) -> ReadCall:
    """A submission in which a file is a symbolic link."""
    path, member = folder / "evil.zip", zipfile.ZipInfo("disp_0001_0002.npz")
    member.external_attr = 0o120777 << 16  # a symbolic link
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, str(canary.parent))
    return partial(list_files, path)


def arrays() -> Iterator[tuple[str, MaliciousFile]]:
    """Arrays and archives."""
    yield "image: a pickle in .npy", partial(array, decode_image, "evil.npy")
    yield "transform: a pickle in .npz", partial(array, read_transform, "disp_1_2.npz")
    yield "submission: a pickle in .npz", partial(array, submitted, "disp_1_2.npz")
    yield "report: a pickle in .npz", partial(array, kept_case, "best.npz")
    for name in ("../evil", "a/../../evil", "/evil", "..\\evil", "C:\\evil", "\\\\host\\evil"):
        yield f"zip: {name}", partial(zipped, name)
    yield "zip: a symbolic link", linked
