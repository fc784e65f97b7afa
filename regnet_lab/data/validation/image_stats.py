"""Statistics of image files, kept in a cache between runs.

Reading a large data set takes minutes. The statistics are a few numbers per file and stay valid
as long as the file's size and modification time do.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from regnet_lab.data.io.images import Volume, decode_image
from regnet_lab.data.io.labels import convert_labels, convert_mask
from regnet_lab.data.preprocessing.cache import hash_sources
from regnet_lab.errors import UserError
from regnet_lab.spatial.header_checks import list_image_files
from regnet_lab.utils.atomic_io import write_text

MAX_CACHE_ENTRIES = 50_000
PERCENTILE_SAMPLE_SIZE = 2**20  # voxels from which percentiles are computed

CONVERTERS = {"labels": convert_labels, "mask": convert_mask}

CaseFile = tuple[str, Path]  # kind ("image", "labels" or "mask") and path


@dataclass(frozen=True)
class ImageStats:
    """Statistics of one image file.

    Args:
        shape: Shape of the array.
        affine: Voxel-to-world matrix (4x4, RAS+).
        nbytes: Size of the decoded array.
        digest: Hash of shape and voxels, independent of the file's compression.
        quantiles: Minimum, 0.5th and 99.5th percentile, maximum.
        counts: Number of voxels of each value, for a label map or mask.
    """

    shape: list[int]
    affine: list[list[float]]
    nbytes: int
    digest: str
    quantiles: list[float]
    counts: dict[int, int]

    @property
    def placeholder(self) -> Volume:
        """A volume of zeros with this shape and affine that takes no memory."""
        return Volume(np.broadcast_to(np.float32(0), self.shape), np.array(self.affine))


StatsByFile = dict[CaseFile, ImageStats | UserError]


def compute_quantiles(array: NDArray) -> list[float]:
    """Compute minimum, 0.5th and 99.5th percentile (of about a million voxels) and maximum."""
    flat = array.ravel(order="K")
    sample = flat[:: flat.size // PERCENTILE_SAMPLE_SIZE | 1]
    return [float(x) for x in (flat.min(), *np.percentile(sample, (0.5, 99.5)), flat.max())]


def compute_digest(array: NDArray) -> str:
    """Compute a hash of an array's shape, type and values."""
    state = hashlib.blake2b(f"{array.shape}{array.dtype}".encode(), digest_size=16)
    state.update(np.ascontiguousarray(array.T).data)  # nibabel's arrays are column-major
    return state.hexdigest()


def count_labels(array: NDArray[np.integer]) -> dict[int, int]:
    """Count the voxels of every label."""
    flat = array.ravel(order="K")
    if flat.max() < flat.size:
        counts = np.bincount(flat)
        values = counts.nonzero()[0]
        return dict(zip(values.tolist(), counts[values].tolist(), strict=True))
    values, counts = np.unique(flat, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def compute_image_stats(kind: str, path: Path) -> ImageStats:
    """Read a file as an ``image``, ``labels`` or ``mask`` and compute its statistics.

    Raises:
        UserError: Also if an image is constant.
    """
    volume = decode_image(path)
    array = volume.array
    if not array.size:
        raise UserError(f"{path}: contains no voxels; replace the file.")
    counts: dict[int, int] = {}
    if convert := CONVERTERS.get(kind):
        array = convert(path, array)
        counts = count_labels(array)
    elif array.min() == array.max():
        raise UserError(f"{path}: is constant, all voxels are {array.min():g}; replace the file.")
    return ImageStats(
        list(array.shape),
        volume.affine.tolist(),
        volume.array.nbytes,
        compute_digest(array),
        compute_quantiles(array),
        counts,
    )


def get_cache_path() -> Path:
    """Return the path of the statistics cache in the user's cache directory."""
    directory = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(directory) / "regnet_lab" / "image_stats.json"


def read_timestamps(path: Path) -> list[list[int]]:
    """Return size and modification time of an image's files; an empty list if one is missing."""
    with suppress(OSError):
        states = map(Path.stat, list_image_files(path))
        return [[state.st_size, state.st_mtime_ns] for state in states]
    return []


def load_cache() -> dict[str, dict[str, Any]]:
    """Return all cache entries; none if the cache is missing, damaged or of another version."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        content = json.loads(get_cache_path().read_text(encoding="utf-8"))
        return dict(content["files"]) if content["version"] == hash_sources() else {}
    return {}


def save_cache(entries: dict[str, dict[str, Any]]) -> None:
    """Write the last ``MAX_CACHE_ENTRIES`` entries; do nothing if the cache cannot be written."""
    latest = dict(list(entries.items())[-MAX_CACHE_ENTRIES:])
    with suppress(UserError):
        write_text(get_cache_path(), json.dumps({"version": hash_sources(), "files": latest}))


def restore_stats(entry: Any, timestamps: list[list[int]]) -> ImageStats | None:
    """Return the statistics of a cache entry; None if it is damaged or the file has changed."""
    with suppress(TypeError, ValueError, KeyError, AttributeError):
        if timestamps and entry["timestamps"] == timestamps:
            counts = {int(value): count for value, count in entry["stats"]["counts"].items()}
            return ImageStats(**{**entry["stats"], "counts": counts})
    return None


def try_compute_stats(file: CaseFile) -> ImageStats | UserError:
    """Return the statistics of a file, or the error that reading it raised."""
    try:
        return compute_image_stats(*file)
    except UserError as error:
        return error


def collect_image_stats(files: Iterable[CaseFile]) -> StatsByFile:
    """Return the statistics of files, or the error that reading one raised.

    A progress bar is shown on a terminal.
    """
    keys = {file: f"{file[0]} {file[1].absolute()}" for file in files}
    timestamps = {file: read_timestamps(file[1]) for file in keys}
    cache = load_cache()
    restored = {file: restore_stats(cache.get(key), timestamps[file]) for file, key in keys.items()}
    remaining = [file for file, stats in restored.items() if stats is None]
    console = Console(stderr=True)
    with ThreadPoolExecutor(2) as pool:
        results = track(
            pool.map(try_compute_stats, remaining),
            "reading files",
            len(remaining),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        computed = dict(zip(remaining, results, strict=True))
    new_entries = {
        keys[file]: {"timestamps": timestamps[file], "stats": asdict(stats)}
        for file, stats in computed.items()
        if isinstance(stats, ImageStats)
    }
    if new_entries:
        save_cache({**load_cache(), **new_entries})
    return {file: stats or computed[file] for file, stats in restored.items()}
