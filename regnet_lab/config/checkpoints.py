"""Find checkpoint files and load their weights; only tensors and plain values are unpickled."""

import pickle
import zipfile
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from regnet_lab.errors import UserError
from regnet_lab.utils.paths import NETWORK_PREFIX


def find_checkpoint(run: str, checkpoint: str) -> Path:
    """Return the path of a checkpoint: ``best`` or ``last`` of a run, another file, or ``run``."""
    named = Path(run) / "checkpoints" / f"{checkpoint}.ckpt"
    for path in (named, Path(checkpoint), Path(run)):
        if path.is_file():
            return path
    raise UserError(f"checkpoint={checkpoint}: there is no {named}, nor a file of that name.")


def check_archive(path: Path) -> None:
    """Refuse a file that ``torch.save`` cannot have written.

    It writes a zip whose members are stored uncompressed, so that no member can expand beyond the
    size of the file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise UserError(f"{path}: is damaged or no checkpoint of regnet_lab.") from error
    stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
    if not stored or sum(member.file_size for member in members) > path.stat().st_size:
        raise UserError(f"{path}: refused, it was not written by torch.save.")


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read packaged weights of a network, named as in the ``state_dict`` of a checkpoint."""
    try:
        tensors = safetensors.torch.load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: is damaged or no safetensors file.") from error
    return {f"{NETWORK_PREFIX}{name}": tensor for name, tensor in tensors.items()}


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the ``state_dict`` of a checkpoint, or packaged weights (``.safetensors``).

    Raises:
        UserError: The file is damaged or contains other objects than tensors and plain values.
    """
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    check_archive(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path}: refused, it contains more than weights or is damaged.") from error
    except (KeyError, EOFError, OSError, RuntimeError, ValueError, TypeError) as error:
        raise UserError(f"{path}: is damaged or no checkpoint of regnet_lab.") from error
    weights = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(w, Tensor) for w in weights.values()):
        raise UserError(f"{path}: is damaged or no checkpoint of regnet_lab.")
    return weights


def load_weights(module: nn.Module, path: Path) -> None:
    """Load a checkpoint all of whose weights match the module."""
    try:
        module.load_state_dict(read_weights(path))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: does not fit this model ({reason}).") from error


def load_matching_weights(module: nn.Module, path: Path) -> str:
    """Load the weights of a checkpoint whose name and shape match; return a summary of them."""
    current, loaded = module.state_dict(), read_weights(path)
    matched = {k: v for k, v in loaded.items() if k in current and current[k].shape == v.shape}
    if not matched:
        raise UserError(
            f"init_from={path}: none of its weights matches this model; choose another run."
        )
    module.load_state_dict(current | matched)
    missing, unused = (sorted(a.keys() - matched.keys()) for a in (current, loaded))
    return (
        f"{len(matched)} of {len(current)} tensors come from {path}; "
        f"new: {', '.join(missing) or 'none'}; not used: {', '.join(unused) or 'none'}"
    )
