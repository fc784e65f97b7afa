"""Check of MetaImage headers before ITK parses them, which impossible values crash or hang."""

import re
from pathlib import Path

from regnet_lab.errors import UserError

ELEMENT_BYTES = {
    **dict.fromkeys(("CHAR", "UCHAR"), 1),
    **dict.fromkeys(("SHORT", "USHORT"), 2),
    **dict.fromkeys(("INT", "UINT", "FLOAT"), 4),
    **dict.fromkeys(("LONG", "ULONG", "LONG_LONG", "ULONG_LONG", "DOUBLE"), 8),
}
MAX_CHANNELS = 4  # a displacement field has 3, a picture with opacity 4
MAX_NUMBER = 2**31
COUNTS = {  # fields of whole numbers, with the smallest one
    "HeaderSize": -1,
    "CompressedDataSize": 0,
    "ElementNumberOfChannels": 1,
}


def _parse_fields(header: str) -> dict[str, str]:
    """Parse the lines ``Name = value`` before the voxels."""
    lines = re.split(r"[\r\n]+", header.partition("ElementDataFile")[0])
    pairs = (line.split("=", 1) if "=" in line else line.split(":", 1) for line in lines)
    return {pair[0].strip(): pair[1].strip() for pair in pairs if len(pair) == 2}


def _parse_counts(text: str, number: int, minimum: int) -> list[int] | None:
    """Parse a list of whole numbers; None unless there are ``number``, none below ``minimum``."""
    words = text.split()
    if len(words) != number or not all(re.fullmatch(r"-?\d{1,18}", word) for word in words):
        return None
    values = [int(word) for word in words]
    return values if all(minimum <= value <= MAX_NUMBER for value in values) else None


def _make_error(path: Path, fields: dict[str, str], name: str, expected: str) -> UserError:
    found = f"is '{fields[name][:40]}'" if name in fields else "is missing"
    return UserError(f"{path}: {name} {found}, but must be {expected}; correct its header.")


def _check_counts(path: Path, fields: dict[str, str]) -> int:
    """Check the fields of single whole numbers; return the number of channels."""
    for name, minimum in COUNTS.items():
        if name in fields and _parse_counts(fields[name], 1, minimum) is None:
            raise _make_error(path, fields, name, f"a whole number from {minimum}")
    channels = int(fields.get("ElementNumberOfChannels", "1"))
    if channels > MAX_CHANNELS:
        raise _make_error(path, fields, "ElementNumberOfChannels", f"at most {MAX_CHANNELS}")
    return channels


def check_meta_image(path: Path, header: str) -> tuple[tuple[int, ...], int]:
    """Return the size of an image and the bytes of a voxel after checking its header.

    Raises:
        UserError: A field is missing or has an impossible value.
    """
    fields = _parse_fields(header)
    ndim = _parse_counts(fields.get("NDims", ""), 1, 2)
    if ndim is None or ndim[0] > 4:
        raise _make_error(path, fields, "NDims", "2, 3 or 4")
    size = _parse_counts(fields.get("DimSize", ""), ndim[0], 1)
    if size is None:
        raise _make_error(path, fields, "DimSize", f"{ndim[0]} positive whole numbers")
    kind = fields.get("ElementType", "").removeprefix("MET_").removesuffix("_ARRAY")
    if kind not in ELEMENT_BYTES:
        raise _make_error(path, fields, "ElementType", "a type such as MET_SHORT or MET_FLOAT")
    return tuple(size), _check_counts(path, fields) * ELEMENT_BYTES[kind]
