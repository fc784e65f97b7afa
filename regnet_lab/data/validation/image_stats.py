"""What is to be known of a file of voxels without keeping them, and remembering it.

Reading a large data set takes minutes; its facts are a few numbers for each file, which stay true
as long as the file's size and time of change do.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regnet_lab.data.io.formats import files_of
from regnet_lab.data.io.images import Volume, decode, whole_numbers
from regnet_lab.errors import UserError

REVISION = 1  # of what is found out about a file
REMEMBERED = 50_000  # files
SAMPLED = 2**20  # voxels from which percentiles are taken

Watch = Callable[[Iterable[Any], int], Iterable[Any]]
Item = tuple[str, Path]  # "image" or "labels", and the file


@dataclass(frozen=True)
class Facts:
    """What a file of voxels holds.

    Args:
        shape: Of the array.
        affine: Its voxel-to-world matrix, RAS+.
        nbytes: That its decoded array takes.
        digest: Hash of shape and voxels, the same however the file is compressed.
        quantiles: Minimum, 0.5th and 99.5th percentile, maximum.
        counts: Voxels of each value, for a label map or a mask.
    """

    shape: tuple[int, ...]
    affine: tuple[tuple[float, ...], ...]
    nbytes: int
    digest: str
    quantiles: tuple[float, ...]
    counts: dict[int, int]

    @property
    def hollow(self) -> Volume:
        """A volume of zeros that takes no memory, to be checked in place of the real one."""
        return Volume(np.broadcast_to(np.float32(0), self.shape), np.array(self.affine))


Known = dict[Item, Facts | UserError]


def quantiles(array: NDArray) -> tuple[float, ...]:
    """Minimum, 0.5th and 99.5th percentile (of about ``SAMPLED`` voxels) and maximum."""
    flat = array.ravel(order="K")
    low, high = np.percentile(flat[:: flat.size // SAMPLED | 1], (0.5, 99.5))
    return float(flat.min()), float(low), float(high), float(flat.max())


def digest(array: NDArray) -> str:
    """Hash of an array's shape, type and values."""
    state = hashlib.blake2b(f"{array.shape}{array.dtype}".encode(), digest_size=16)
    state.update(np.ascontiguousarray(array.T).data)  # nibabel's arrays run along columns
    return state.hexdigest()


def measure(kind: str, path: Path) -> Facts:
    """Read a file whole, as an ``image`` or as ``labels``.

    Raises:
        UserError: It is missing or damaged, an image is constant, or labels are no whole numbers.
    """
    volume = decode(path)
    array = volume.array
    if not array.size:
        raise UserError(f"{path}: holds no voxels; replace it.")
    counts: dict[int, int] = {}
    if kind == "labels":
        array = whole_numbers(path, volume, volume, path)
        found = np.bincount(array.ravel(order="K"))
        counts = {int(value): int(found[value]) for value in found.nonzero()[0]}
    elif array.min() == array.max():
        raise UserError(f"{path}: all of its voxels are {array.min():g}; it shows nothing.")
    affine = tuple(tuple(map(float, row)) for row in volume.affine)
    return Facts(array.shape, affine, volume.array.nbytes, digest(array), quantiles(array), counts)


def memory() -> Path:
    """The file in which facts are remembered, in the user's cache folder."""
    folder = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(folder) / "regnet_lab" / "facts.json"


def key(item: Item) -> str:
    """What a file is remembered by."""
    return f"{item[0]} {item[1].absolute()}"


def stamp(path: Path) -> list[list[int]]:
    """Size and time of change of the files that hold an image; nothing where one is missing."""
    with suppress(OSError):
        return [[state.st_size, state.st_mtime_ns] for state in map(Path.stat, files_of(path))]
    return []


def recall() -> dict[str, dict[str, Any]]:
    """All that is remembered; nothing where the file is missing or of another making."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        content = json.loads(memory().read_text(encoding="utf-8"))
        return dict(content["files"]) if content["revision"] == REVISION else {}
    return {}


def remember(entries: dict[str, dict[str, Any]]) -> None:
    """Keep the last ``REMEMBERED`` entries; where that cannot be written, nothing is kept."""
    kept = dict(list(entries.items())[-REMEMBERED:])
    path = memory()
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        number, aside = tempfile.mkstemp(dir=path.parent, suffix=".part")
        try:
            with open(number, "w", encoding="utf-8") as file:
                json.dump({"revision": REVISION, "files": kept}, file)
            os.replace(aside, path)
        except OSError:
            os.unlink(aside)


def restored(entry: dict[str, Any] | None, found: list[list[int]]) -> Facts | None:
    """The facts of an entry, unless the file is not what it was."""
    with suppress(TypeError, ValueError, KeyError, AttributeError):
        if entry and found and entry["stamp"] == found:
            facts = Facts(**entry["facts"])
            return Facts(
                tuple(facts.shape),
                tuple(map(tuple, facts.affine)),
                facts.nbytes,
                facts.digest,
                tuple(facts.quantiles),
                {int(value): count for value, count in facts.counts.items()},
            )
    return None


def gather(items: Iterable[Item], watch: Watch | None = None) -> Known:
    """The facts of files, or the sentence that says what is wrong with one.

    Args:
        items: The files.
        watch: ``watch(results, total)`` passes on what is read, to show progress.
    """
    items = list(dict.fromkeys(items))
    before = recall()
    stamps = {item: stamp(item[1]) for item in items}
    known: Known = {
        item: facts
        for item in items
        if (facts := restored(before.get(key(item)), stamps[item])) is not None
    }
    unknown = [item for item in items if item not in known]

    def look(item: Item) -> tuple[Item, Facts | UserError]:
        try:
            return item, measure(*item)
        except UserError as error:
            return item, error

    with ThreadPoolExecutor(2) as pool:
        results = pool.map(look, unknown)
        read: Known = dict(watch(results, len(unknown)) if watch else results)
    fresh = {
        key(item): {"stamp": stamps[item], "facts": asdict(facts)}
        for item, facts in read.items()
        if isinstance(facts, Facts)
    }
    if fresh:
        remember({**recall(), **fresh})
    return known | read
