"""Checkpoints in: which file, and its weights into a module, trusting nothing but tensors."""

import pickle
import zipfile
from pathlib import Path

import torch
from torch import Tensor, nn

from regnet_lab.errors import UserError


def checkpoint_path(run: str, checkpoint: str) -> Path:
    """``best`` or ``last`` of a run, any other file, or ``run`` itself where that is a file.

    Raises:
        UserError: It does not exist.
    """
    named = Path(run) / "checkpoints" / f"{checkpoint}.ckpt"
    for path in (named, Path(checkpoint), Path(run)):
        if path.is_file():
            return path
    raise UserError(f"checkpoint={checkpoint}: there is no {named}, nor a file of that name.")


def check_archive(path: Path) -> None:
    """Refuse a file that is not as ``torch.save`` writes it: a zip whose members lie in it as they
    are, so that nothing in it can unfold to more than the file has bytes.

    Raises:
        UserError: It is not.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise UserError(f"{path}: is damaged or no checkpoint of regnet_lab.") from error
    stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
    if not stored or sum(member.file_size for member in members) > path.stat().st_size:
        raise UserError(f"{path}: refused, it was not written by torch.save.")


def read_weights(path: Path) -> dict[str, Tensor]:
    """The named tensors of a checkpoint; nothing but tensors and plain values is unpickled.

    Raises:
        UserError: The file is damaged or holds other objects.
    """
    check_archive(path)
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path}: refused, it holds more than weights or is damaged.") from error
    except (KeyError, EOFError, OSError, RuntimeError, ValueError, TypeError) as error:
        raise UserError(f"{path}: is damaged or no checkpoint of regnet_lab.") from error
    weights = found.get("state_dict") if isinstance(found, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(w, Tensor) for w in weights.values()):
        raise UserError(f"{path}: is damaged or no checkpoint of regnet_lab.")
    return weights


def load_weights(module: nn.Module, path: Path) -> None:
    """Load a checkpoint whose every weight fits.

    Raises:
        UserError: It is unreadable or fits another model.
    """
    try:
        module.load_state_dict(read_weights(path))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: does not fit this model ({reason}).") from error


def load_matching(module: nn.Module, path: Path) -> str:
    """Load those weights of a checkpoint whose name and shape fit, and say which.

    Raises:
        UserError: It is unreadable, or none fits.
    """
    own, given = module.state_dict(), read_weights(path)
    matched = {k: v for k, v in given.items() if k in own and own[k].shape == v.shape}
    if not matched:
        raise UserError(f"init_from={path}: no weight of it fits this model; choose another run.")
    module.load_state_dict(own | matched)
    new, unused = (sorted(a.keys() - matched.keys()) for a in (own, given))
    return (
        f"{len(matched)} of {len(own)} tensors come from {path}; "
        f"new: {', '.join(new) or 'none'}; not used: {', '.join(unused) or 'none'}"
    )
