"""Prepare the words of a command line for Hydra: file names as typed, images by position.

Hydra gives a meaning to blanks, commas, brackets, ``=``, ``#`` and to what looks like a number.
Values of the keys in ``TEXT_KEYS`` are file names and names, which have none of these meanings, and
are quoted.  Imports nothing heavy, so that ``--help`` is quick.
"""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, QuotedString
from hydra.errors import HydraException

from regnet_lab.config.compose import CONFIG_DIR
from regnet_lab.errors import UserError

SIDES = ("fixed", "moving")
TEXT_KEYS = frozenset(
    {
        *(f"{side}{part}" for side in SIDES for part in ("", "_labels", "_mask", "_points")),
        *("name", "pairs", "image", "apply_transform", "export", "run", "checkpoint", "output_dir"),
        *("resume", "init_from", "experiment_root", "run_dir", "sweep_dir", "data_root", "root"),
        *("table", "submission", "evaluation_name", "method_name", "data_name", "x_axis"),
        *("image_suffix", "test_root"),
    }
)
LIST_KEYS = ("apply_transform", "init_from", "table")  # whose value may be [a,b]
OVERRIDE = re.compile(r"(?P<key>[+~]{0,2}[\w.@/:-]+)=(?P<value>.*)", re.DOTALL)
QUOTED = re.compile(r"""(?P<quote>['"])(?:\\.|(?!(?P=quote)).)*(?P=quote)""", re.DOTALL)
ITEM = re.compile(r"""(?:'(?:\\.|[^'])*'|"(?:\\.|[^"])*"|[^,])+""", re.DOTALL)
SWEEP = re.compile(r"(?:choice|range|interval|glob|shuffle|sort|tag)\(.*\)", re.DOTALL)
SWEEP_FLAGS = {"-m", "--multirun"}
FLAGS_WITH_VALUE = {
    *("-c", "--cfg", "-p", "--package", "-cp", "--config-path", "-cn", "--config-name"),
    *("-cd", "--config-dir", "--experimental-rerun", "-i", "--info"),
}


def quote(text: str) -> str:
    r"""Quote a text so that Hydra reads it as a string of exactly these characters.

    >>> quote("it's [1].nii")
    "'it\\'s [1].nii'"
    """
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", text)
    return "'" + re.sub(r"(\\+)$", r"\1\1", escaped) + "'"


def remove_quotes(override: str) -> str:
    """Return ``key=value`` with a quoted text as it was typed.

    >>> remove_quotes("run='a b'")
    'run=a b'
    """
    parsed = OverridesParser.create().parse_override(override)
    is_text = isinstance(parsed.value(), str) and not parsed.is_sweep_override()
    return f"{override.partition('=')[0]}={parsed.value()}" if is_text else override


def _quote_item(text: str) -> str:
    """Quote a name unless it is null, empty or quoted already; ``~`` is the home folder."""
    is_plain = text.strip() in ("", "null") or QUOTED.fullmatch(text.strip())
    if is_plain:
        return text
    if text[:1] in ("'", '"') and not Path(text).exists():
        corrected = shlex.quote(text.strip(text[0]))
        raise UserError(f"{text}: this quote does not end; write {corrected}.")
    return quote(str(Path(text).expanduser()) if text.startswith("~/") else text)


def _quote_items(text: str) -> str:
    """Quote the names between the commas that are not themselves in quotes."""
    return ",".join(_quote_item(match.group().strip()) for match in ITEM.finditer(text))


def quote_override(word: str, is_sweep: bool = False) -> str:
    """Quote the value of ``key=value`` if it is a file name or a name.

    ``is_sweep`` says that commas separate the values of a sweep.

    >>> quote_override("fixed=sub 1, rest=2.nii.gz")
    "fixed='sub 1, rest=2.nii.gz'"
    >>> quote_override("trainer.max_epochs=3")
    'trainer.max_epochs=3'
    """
    match = OVERRIDE.fullmatch(word)
    name = re.split(r"[.@]", match["key"].lstrip("+~"))[-1] if match else ""
    if not match or name not in TEXT_KEYS:
        return word
    value = match["value"]
    if name == "submission" and value.isdigit():  # a year
        return word
    is_list = value.startswith("[") and value.endswith("]") and name in LIST_KEYS
    if is_list and not value.startswith("[{"):
        value = f"[{_quote_items(value[1:-1])}]"
    elif is_sweep and not Path(value).exists():
        value = value if SWEEP.fullmatch(value) else _quote_items(value)
    elif not is_list:
        value = _quote_item(value)
    return f"{match['key']}={value}"


def name_positional_images(words: Sequence[str]) -> list[str]:
    """Replace words without a key by ``fixed=`` and ``moving=``, in this order.

    Raises:
        UserError: There are more than two of them, or an image is also given by its key.

    >>> name_positional_images(["a.nii.gz", "b.nii.gz", "align=rigid"])
    ['fixed=a.nii.gz', 'moving=b.nii.gz', 'align=rigid']
    """
    named, sides, takes_value = [], iter(SIDES), False
    for word in words:
        is_option = takes_value or (word[:1] in "-~+" and not Path(word).is_file())
        is_override = OVERRIDE.fullmatch(word) and not Path(word).is_file()
        if is_option or is_override:
            named.append(word)
        elif side := next(sides, None):
            named.append(f"{side}={word}")
        else:
            raise UserError(f"'{word}' is a third image; give a fixed and a moving one.")
        takes_value = word in FLAGS_WITH_VALUE
    for side in SIDES:
        if sum(word.startswith(f"{side}=") for word in named) > 1:
            raise UserError(f"The {side} image is given twice, by its key and by its position.")
    return named


def expand_null_overrides(words: Sequence[str]) -> list[str]:
    """Replace ``group=null`` by ``~group``, which is how Hydra removes a group."""
    groups = {f"{folder.name}=null" for folder in Path(CONFIG_DIR).iterdir() if folder.is_dir()}
    return [f"~{word.removesuffix('=null')}" if word in groups else word for word in words]


def check_grammar(words: Sequence[str]) -> None:
    """Raise a UserError, with the corrected word, for an override that Hydra cannot parse."""
    parser = OverridesParser.create()
    for word in words:
        try:
            parser.parse_override(word)
        except HydraException:
            match = OVERRIDE.fullmatch(word)
            if not match:
                raise UserError(f"'{word}' is not of the form key=value.") from None
            corrected = shlex.quote(f"{match['key']}={quote(match['value'])}")
            raise UserError(
                f"{match['key']}: the value {match['value']} is neither a number, a word nor a "
                f"list [a,b]; if it is a text, write {corrected}."
            ) from None


def list_overrides(words: Sequence[str]) -> list[str]:
    """Return the words of a command line that are no options of Hydra."""
    values = {i + 1 for i, word in enumerate(words) if word in FLAGS_WITH_VALUE}
    return [w for i, w in enumerate(words) if i not in values and not w.startswith("-")]


def list_run_folders(overrides: Sequence[str]) -> list[str]:
    """Return the run folders that overrides name; those of a sweep by a glob are left out."""
    folders: list[object] = []
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        if override.key_or_group in ("run", "resume"):
            value: Any = override.value()
            folders += value.list if isinstance(value, ChoiceSweep) else [value]
    texts = [f.text if isinstance(f, QuotedString) else f for f in folders]
    return [text for text in texts if isinstance(text, str)]


def prepare_overrides(words: Sequence[str], positional: bool = False) -> list[str]:
    """Prepare the words of a command line, options included, for Hydra.

    ``positional`` says that words without a key are images.

    Raises:
        UserError: A word has no form that Hydra can read.
    """
    words = name_positional_images(words) if positional else list(words)
    is_sweep = bool(SWEEP_FLAGS & set(words))
    prepared = expand_null_overrides([quote_override(word, is_sweep) for word in words])
    check_grammar(list_overrides(prepared))
    return prepared
