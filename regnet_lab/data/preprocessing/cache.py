"""Keeping prepared arrays: in memory, or in a folder that several processes fill and share.

An entry is a set of named arrays.  Its key is a hash of the bytes of the files it was made from
and of the settings it was made with, so a changed file or setting is simply another entry.
"""

import hashlib
import json
import os
import secrets
import shutil
import tempfile
import zlib
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from types import FunctionType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from regnet_lab.errors import UserError
from regnet_lab.utils.atomic_io import settle

Arrays = dict[str, NDArray]

MAGIC = b"regnet1\n"
SPARE = 2**30  # bytes left free on the disk of a cache folder
ALIGNED = 64  # bytes, so that mapped arrays start where processors like it


class Cache(Protocol):
    """Keeps what was made under a key."""

    def get(self, key: str, make: Callable[[], Arrays]) -> Arrays:
        """The arrays of ``key``, made if they are not there; not to be written to."""


def describe(part: object) -> object:
    """What tells two settings apart and stays the same in another process: functions by name,
    code and bound arguments, everything else by its value.
    """
    if isinstance(part, partial):
        return describe([part.func, part.args, part.keywords])
    if isinstance(part, dict):
        return [[describe(k), describe(v)] for k, v in part.items()]
    if isinstance(part, list | tuple):
        return [describe(item) for item in part]
    if isinstance(part, FunctionType):
        return [part.__module__, part.__qualname__, part.__code__.co_code.hex()]
    return repr(part)


def fingerprint(*parts: object) -> str:
    """A short hash of what :func:`describe` says of the parts."""
    return hashlib.blake2b(json.dumps(describe(parts)).encode(), digest_size=16).hexdigest()


@cache
def _digest(path: Path, size: int, modified: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def content(path: Path) -> str:
    """Hash of a file's bytes, read again only when its size or time of change differ.

    Raises:
        UserError: There is no such file, or it may not be read.
    """
    try:
        state = path.stat()
        return _digest(path, state.st_size, state.st_mtime_ns)
    except FileNotFoundError as error:
        raise UserError(f"{path}: this file is missing.") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from error


class Uncached:
    """Keeps nothing."""

    def get(self, key: str, make: Callable[[], Arrays]) -> Arrays:
        return make()


class MemoryCache:
    """Keeps the entries used last, of ``megabytes`` together; each process has its own."""

    def __init__(self, megabytes: float) -> None:
        self.megabytes, self.used = megabytes, 0
        self.entries: OrderedDict[str, Arrays] = OrderedDict()

    def __reduce__(self) -> tuple:
        return MemoryCache, (self.megabytes,)

    def get(self, key: str, make: Callable[[], Arrays]) -> Arrays:
        if key not in self.entries:
            self.entries[key] = make()
            self.used += _size(self.entries[key])
        self.entries.move_to_end(key)
        arrays = self.entries[key]
        while self.used > self.megabytes * 1e6 and self.entries:
            self.used -= _size(self.entries.popitem(last=False)[1])
        return arrays


def _size(arrays: Arrays) -> int:
    return sum(array.nbytes for array in arrays.values())


class FolderCache:
    """Keeps one file for each entry, mapped into memory when it is used.

    A file is written beside its place, flushed to disk and renamed, so that readers and other
    writers see all of it or nothing.  Its checksum is verified the first time a process opens it,
    its length every time; a damaged file is made again.  When the disk is nearly full, what is
    made is used and not kept.

    Raises:
        UserError: The folder cannot be written to.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()
        self.verified: set[tuple[str, int]] = set()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.folder).close()
        except OSError as error:
            raise UserError(
                f"cache={folder}: cannot write there ({error.strerror}); name another folder, "
                "'memory' or null."
            ) from error

    def get(self, key: str, make: Callable[[], Arrays]) -> Arrays:
        path = self.folder / f"{key}.arrays"
        arrays = self._read(path)
        if arrays is not None:
            return arrays
        made = make()
        if shutil.disk_usage(self.folder).free < _size(made) + SPARE:
            return made
        with suppress(OSError):  # a quota, or a disk that another process has just filled
            write(path, made)
        return made

    def _read(self, path: Path) -> Arrays | None:
        """The entry, or nothing where there is none or a damaged one."""
        try:
            stamp = (path.name, path.stat().st_mtime_ns)
            arrays = read(path, verify=stamp not in self.verified)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        self.verified.add(stamp)
        return arrays


def write(path: Path, arrays: Arrays) -> None:
    """Put arrays into one file: magic, length of the header, header, aligned arrays.

    The header is JSON: for each array its name, type, shape and offset, and the checksum of all.
    """
    table, payload, offset = [], [], 0
    for name, array in arrays.items():
        data = np.ascontiguousarray(array).tobytes()
        table.append([name, array.dtype.str, array.shape, offset])
        payload.append(data + bytes(-len(data) % ALIGNED))
        offset += len(payload[-1])
    body = b"".join(payload)
    header = json.dumps({"arrays": table, "bytes": offset, "checksum": zlib.crc32(body)}).encode()
    header += b" " * (-(len(MAGIC) + 8 + len(header)) % ALIGNED)
    aside = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}.part")
    try:
        aside.write_bytes(MAGIC + len(header).to_bytes(8, "little") + header + body)
        settle(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def read(path: Path, verify: bool) -> Arrays:
    """Map the arrays of a file that :func:`write` made.

    Raises:
        ValueError: It is damaged; with ``verify`` that includes any changed byte.
    """
    file = np.memmap(path, np.uint8, "r")
    start = len(MAGIC) + 8
    if file[: len(MAGIC)].tobytes() != MAGIC:
        raise ValueError(f"{path} is no cache entry")
    begin = start + int.from_bytes(file[len(MAGIC) : start].tobytes(), "little")
    header = json.loads(file[start:begin].tobytes())
    body = file[begin:]
    if len(body) != header["bytes"] or (verify and zlib.crc32(body.data) != header["checksum"]):
        raise ValueError(f"{path} is damaged")
    arrays = {}
    for name, kind, shape, offset in header["arrays"]:
        dtype = np.dtype(kind)
        count = int(np.prod(shape)) * dtype.itemsize
        arrays[name] = body[offset : offset + count].view(dtype).reshape(shape)
    return arrays


def open_cache(where: str | None, megabytes: float) -> Cache:
    """``memory``, bounded by ``megabytes``; a folder, bounded by the disk; null keeps nothing."""
    if where is None:
        return Uncached()
    return MemoryCache(megabytes) if where == "memory" else FolderCache(where)
