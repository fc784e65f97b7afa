"""Statistics of image files, kept in a cache between runs.

Reading a large data set takes minutes. The statistics are a few numbers per file and stay valid
as long as the file's size and modification time do.
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

from regnet_lab.data.io.images import Volume, decode_image, validate_labels
from regnet_lab.errors import UserError
from regnet_lab.spatial.header_checks import list_image_files

CACHE_VERSION = 1  # increase it whenever the statistics change
MAX_CACHE_ENTRIES = 50_000
PERCENTILE_SAMPLE_SIZE = 2**20  # voxels from which percentiles are computed

ProgressWrapper = Callable[[Iterable[Any], int], Iterable[Any]]
CaseFile = tuple[str, Path]  # kind ("image" or "labels") and path


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

    shape: tuple[int, ...]
    affine: tuple[tuple[float, ...], ...]
    nbytes: int
    digest: str
    quantiles: tuple[float, ...]
    counts: dict[int, int]

    @property
    def placeholder(self) -> Volume:
        """A volume of zeros with this shape and affine that takes no memory."""
        return Volume(np.broadcast_to(np.float32(0), self.shape), np.array(self.affine))


StatsByFile = dict[CaseFile, ImageStats | UserError]


def compute_quantiles(array: NDArray) -> tuple[float, ...]:
    """Compute minimum, 0.5th and 99.5th percentile and maximum.

    Percentiles come from about ``PERCENTILE_SAMPLE_SIZE`` voxels.
    """
    flat = array.ravel(order="K")
    low, high = np.percentile(flat[:: flat.size // PERCENTILE_SAMPLE_SIZE | 1], (0.5, 99.5))
    return float(flat.min()), float(low), float(high), float(flat.max())


def compute_digest(array: NDArray) -> str:
    """Compute a hash of an array's shape, type and values."""
    state = hashlib.blake2b(f"{array.shape}{array.dtype}".encode(), digest_size=16)
    state.update(np.ascontiguousarray(array.T).data)  # nibabel's arrays are column-major
    return state.hexdigest()


def compute_image_stats(kind: str, path: Path) -> ImageStats:
    """Read a file as an ``image`` or as ``labels`` and compute its statistics.

    Raises:
        UserError: The file is missing or damaged, an image is constant, or labels are not
            integers.
    """
    volume = decode_image(path)
    array = volume.array
    if not array.size:
        raise UserError(f"{path}: contains no voxels; replace the file.")
    counts: dict[int, int] = {}
    if kind == "labels":
        array = validate_labels(path, volume, volume, path)
        bincount = np.bincount(array.ravel(order="K"))
        counts = {int(value): int(bincount[value]) for value in bincount.nonzero()[0]}
    elif array.min() == array.max():
        raise UserError(f"{path}: is constant, all voxels are {array.min():g}; replace the file.")
    return ImageStats(
        shape=array.shape,
        affine=tuple(tuple(map(float, row)) for row in volume.affine),
        nbytes=volume.array.nbytes,
        digest=compute_digest(array),
        quantiles=compute_quantiles(array),
        counts=counts,
    )


def get_cache_path() -> Path:
    """Return the path of the statistics cache in the user's cache directory."""
    directory = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(directory) / "regnet_lab" / "image_stats.json"


def make_cache_key(file: CaseFile) -> str:
    """Return the key of a file in the cache."""
    return f"{file[0]} {file[1].absolute()}"


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
        return dict(content["files"]) if content["version"] == CACHE_VERSION else {}
    return {}


def save_cache(entries: dict[str, dict[str, Any]]) -> None:
    """Write the last ``MAX_CACHE_ENTRIES`` entries; do nothing if the cache cannot be written."""
    latest = dict(list(entries.items())[-MAX_CACHE_ENTRIES:])
    path = get_cache_path()
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
        try:
            with open(descriptor, "w", encoding="utf-8") as file:
                json.dump({"version": CACHE_VERSION, "files": latest}, file)
            os.replace(temporary, path)
        except OSError:
            os.unlink(temporary)


def restore_stats(entry: dict[str, Any] | None, timestamps: list[list[int]]) -> ImageStats | None:
    """Return the statistics of a cache entry; None if the file has changed."""
    with suppress(TypeError, ValueError, KeyError, AttributeError):
        if entry and timestamps and entry["timestamps"] == timestamps:
            stats = dict(entry["stats"])
            stats["affine"] = tuple(map(tuple, stats["affine"]))
            stats["counts"] = {int(value): count for value, count in stats["counts"].items()}
            stats |= {name: tuple(stats[name]) for name in ("shape", "quantiles")}
            return ImageStats(**stats)
    return None


def collect_image_stats(
    files: Iterable[CaseFile], show_progress: ProgressWrapper | None = None
) -> StatsByFile:
    """Return the statistics of files, or the error that reading one raised.

    Args:
        files: Kind and path of each file.
        show_progress: ``show_progress(results, total)`` passes the results through.
    """
    files = list(dict.fromkeys(files))
    cache = load_cache()
    timestamps = {file: read_timestamps(file[1]) for file in files}
    cached: StatsByFile = {
        file: stats
        for file in files
        if (stats := restore_stats(cache.get(make_cache_key(file)), timestamps[file])) is not None
    }
    remaining = [file for file in files if file not in cached]

    def read(file: CaseFile) -> tuple[CaseFile, ImageStats | UserError]:
        try:
            return file, compute_image_stats(*file)
        except UserError as error:
            return file, error

    with ThreadPoolExecutor(2) as pool:
        results = pool.map(read, remaining)
        computed: StatsByFile = dict(
            show_progress(results, len(remaining)) if show_progress else results
        )
    new_entries = {
        make_cache_key(file): {"timestamps": timestamps[file], "stats": asdict(stats)}
        for file, stats in computed.items()
        if isinstance(stats, ImageStats)
    }
    if new_entries:
        save_cache({**load_cache(), **new_entries})
    return cached | computed
