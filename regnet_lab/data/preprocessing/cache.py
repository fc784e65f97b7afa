"""Caches of preprocessed arrays: in memory, or in a folder that several processes share.

An entry is a set of named arrays.  Its key is a hash of the bytes of the files it was made from
and of the settings and the code it was made with, so that a change of any of them gives another
entry.
"""

import hashlib
import inspect
import json
import math
import shutil
import tempfile
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from types import CodeType, FunctionType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from regnet_lab.errors import UserError
from regnet_lab.spatial.header_checks import list_image_files
from regnet_lab.utils.atomic_io import write_bytes
from regnet_lab.utils.files import require_file

Arrays = dict[str, NDArray]
SOURCES = ("data", "ops", "spatial")  # rooms of the package whose code prepares images
LIBRARIES = ("nibabel", "numpy", "scipy", "SimpleITK", "torch")

MIN_FREE_BYTES = 2**30  # left free on the disk of a cache folder


class Cache(Protocol):
    """A store of entries by key."""

    megabytes: float  # to which the total size of the entries is limited

    def get_or_create(self, key: str, create: Callable[[], Arrays]) -> Arrays:
        """Return the arrays of ``key``, created if they are missing; they are read-only."""


@cache
def hash_sources() -> str:
    """Compute a hash of the code that reads and prepares images, and of the libraries it uses."""
    package = Path(__file__).parents[2]
    files = sorted(file for part in SOURCES for file in (package / part).rglob("*.py"))
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        digest.update(file.read_bytes())
    versions = [f"{library} {version(library)}" for library in LIBRARIES]
    digest.update(" ".join(versions).encode())
    return digest.hexdigest()


def _describe_code(code: CodeType) -> object:
    """Return the instructions, names and constants of a function, in the same order everywhere."""
    constants: list[object] = [
        _describe_code(constant)
        if isinstance(constant, CodeType)
        else sorted(map(repr, constant))
        if isinstance(constant, frozenset)
        else repr(constant)
        for constant in code.co_consts
    ]
    return [code.co_code.hex(), list(code.co_names), constants]


def _describe_function(function: FunctionType) -> object:
    """Return the name, the code of the module and the bound values of a function."""
    source = inspect.getsourcefile(function)
    code = hash_file(Path(source)) if source and Path(source).is_file() else ""
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    bound = [function.__defaults__, function.__kwdefaults__, cells]
    return [
        function.__module__,
        function.__qualname__,
        code,
        _describe_code(function.__code__),
        describe_setting(bound),
    ]


def describe_setting(value: object) -> object:
    """Return what distinguishes two settings and is the same in every process: functions by name,
    code and bound arguments, other objects by their ``repr``.
    """
    if isinstance(value, partial):
        return describe_setting([value.func, value.args, value.keywords])
    if isinstance(value, dict):
        return [[describe_setting(k), describe_setting(v)] for k, v in value.items()]
    if isinstance(value, list | tuple):
        return [describe_setting(item) for item in value]
    if isinstance(value, FunctionType):
        return _describe_function(value)
    return repr(value)


def compute_fingerprint(*settings: object) -> str:
    """Compute a short hash of settings, as :func:`describe_setting` describes them."""
    text = json.dumps(describe_setting(settings))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@cache
def _hash_bytes(path: Path, size: int, modified: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def hash_file(path: Path) -> str:
    """Compute the hash of a file's bytes; it is read again only if its size or time changes."""
    require_file(path)
    try:
        state = path.stat()
        return _hash_bytes(path, state.st_size, state.st_mtime_ns)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from error


def hash_image(path: Path) -> list[str]:
    """Compute the hash of each file of an image, or of a DICOM folder."""
    return [hash_file(file) for file in list_image_files(path)]


class NoCache:
    """A cache that stores nothing."""

    megabytes = math.inf

    def get_or_create(self, key: str, create: Callable[[], Arrays]) -> Arrays:
        return create()


class MemoryCache:
    """A cache of the most recently used entries in the memory of one process, limited to
    ``megabytes``.
    """

    def __init__(self, megabytes: float) -> None:
        self.megabytes, self.used = megabytes, 0
        self.entries: OrderedDict[str, Arrays] = OrderedDict()

    def __reduce__(self) -> tuple:
        return MemoryCache, (self.megabytes,)

    def get_or_create(self, key: str, create: Callable[[], Arrays]) -> Arrays:
        if key not in self.entries:
            self.entries[key] = create()
            self.used += _count_bytes(self.entries[key])
        self.entries.move_to_end(key)
        arrays = self.entries[key]
        while self.used > self.megabytes * 1e6 and self.entries:
            self.used -= _count_bytes(self.entries.popitem(last=False)[1])
        return arrays


def _count_bytes(arrays: Arrays) -> int:
    return sum(array.nbytes for array in arrays.values())


class FolderCache:
    """A cache with one memory-mapped safetensors file per entry in ``folder``.

    Files are written atomically, so other processes see a whole file or none.  The digest of a
    file is verified when a process first opens it, its length every time; a damaged or foreign file
    is created again.  If the disk is nearly full, new entries are used but not stored.
    """

    megabytes = math.inf

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()
        self.verified: set[tuple[str, int]] = set()  # name and time of change
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.folder).close()
        except OSError as error:
            raise UserError(
                f"cache={folder}: cannot write there ({error.strerror}); name another folder, "
                "'memory' or null."
            ) from error

    def get_or_create(self, key: str, create: Callable[[], Arrays]) -> Arrays:
        path = self.folder / f"{key}.safetensors"
        stored = self._read(path)
        if stored is not None:
            return stored
        arrays = create()
        if shutil.disk_usage(self.folder).free >= _count_bytes(arrays) + MIN_FREE_BYTES:
            with suppress(UserError):  # a quota, or a disk that another process has just filled
                write_arrays(path, arrays)
        return arrays

    def _read(self, path: Path) -> Arrays | None:
        """Return the arrays of a file, or None if it is missing or damaged."""
        try:
            version = (path.name, path.stat().st_mtime_ns)
            arrays = read_arrays(path, verify=version not in self.verified)
        except (OSError, ValueError, SafetensorError):
            return None
        self.verified.add(version)
        return arrays


def _hash_arrays(arrays: Arrays) -> str:
    """Compute a hash of contiguous arrays with their names, types and shapes."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def write_arrays(path: Path, arrays: Arrays) -> None:
    """Write arrays atomically to a safetensors file whose metadata hold their digest."""
    # safetensors stores the memory of an array as it lies there
    contiguous = {
        name: np.asarray(array, array.dtype.newbyteorder("="), order="C")
        for name, array in arrays.items()
    }
    write_bytes(path, save(contiguous, {"digest": _hash_arrays(contiguous)}))


def read_arrays(path: Path, verify: bool) -> Arrays:
    """Map the arrays of a file that :func:`write_arrays` wrote, read-only.

    With ``verify`` they are compared with the digest; otherwise only the file's length is checked.

    Raises:
        ValueError: The digest is missing or differs.
        SafetensorError: The file is truncated or no safetensors file.
    """
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        arrays = {name: file.get_tensor(name).numpy() for name in file.keys()}  # noqa: SIM118
    for array in arrays.values():
        array.flags.writeable = False
    if verify and metadata.get("digest") != _hash_arrays(arrays):
        raise ValueError(f"{path}: its digest does not match its arrays.")
    return arrays


def open_cache(location: str | None, megabytes: float) -> Cache:
    """Return the cache for ``memory`` (limited to ``megabytes``), for a folder (limited by the
    disk), or for None (stores nothing).
    """
    if location is None:
        return NoCache()
    return MemoryCache(megabytes) if location == "memory" else FolderCache(location)
