"""Registration of images in memory, and the pipeline that a configuration describes."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813
import torch
from hydra import compose, initialize_config_dir
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf

from regnet_lab.config.checkpoints import find_checkpoint, load_weights
from regnet_lab.config.compose import expand_null_overrides
from regnet_lab.config.instantiate import instantiate_config
from regnet_lab.config.run_dir import load_run_config
from regnet_lab.data.io.cases import LoadedCase
from regnet_lab.data.io.images import Volume, decode_image
from regnet_lab.errors import UserError
from regnet_lab.registration.inference_grid import InferenceGrid
from regnet_lab.registration.mapping import warp_array
from regnet_lab.registration.pipeline import RegistrationPipeline, RegistrationResult
from regnet_lab.spatial import coordinates
from regnet_lab.spatial.image_grid import transform_to_field
from regnet_lab.spatial.learn2reg import field_to_displacement
from regnet_lab.utils.paths import CONFIG_DIR

log = logging.getLogger(__name__)

PREPARATION_KEYS = ("shape", "spacing", "intensity", "shared_range")
ImageSource = sitk.Image | NDArray | str | Path


def load_training_grid(run: DictConfig) -> dict[str, Any]:
    """Read the grid and intensity mapping with which the data of a training run was prepared.

    Those of ``PREPARATION_KEYS`` that are known: from its configuration and, with the spacing of
    the data, from its ``grid.json``.
    """
    keys = ("data.dataset.prepare", "data.dataset.images.prepare")  # second: synthetic deformations
    prepare: Any = next(filter(None, (OmegaConf.select(run, key) for key in keys)), {})
    training = {key: prepare[key] for key in PREPARATION_KEYS if prepare.get(key) is not None}
    path = Path(run.output_dir) / "grid.json"
    if path.is_file():
        training |= json.loads(path.read_text(encoding="utf-8"))
    elif "spacing" not in training:
        log.warning(
            "%s does not say at which spacing it was trained; that of the fixed image is used. "
            "Set grid.spacing=<mm> to change it.",
            run.output_dir,
        )
    return training


def build_pipeline(cfg: DictConfig, overrides: Sequence[str]) -> RegistrationPipeline:
    """Build the pipeline of a configuration: the network of a run, or a model without a run.

    Fields of a run's network are only optimized if one of the user's ``overrides`` sets
    ``optimizer``, because optimization forgets what the network learned from labels.
    """
    trusted = cfg.trusted_packages
    training: dict[str, Any] = {}
    grid: dict[str, Any] = {"orientation": "world"}
    if cfg.run:
        run = load_run_config(cfg.run)
        module = instantiate_config(run.module, trusted)
        load_weights(module, find_checkpoint(cfg.run, cfg.checkpoint))
        model, training = module.model, load_training_grid(run)
        grid = {key: training.get(key) for key in ("shape", "spacing")}
        if run.ndim == 2:  # slices, or volumes slice by slice, are registered as stored
            grid["orientation"] = "image"
    else:
        model = instantiate_config(cfg.get("model"), trusted)
    grid |= {str(key): value for key, value in cfg.grid.items() if value is not None}
    options = {key: training[key] for key in ("intensity", "shared_range") if key in training}
    intensity = cfg.get("intensity") or training.get("intensity")
    if intensity is not None:
        options["intensity"] = instantiate_config(intensity, trusted)
    requested = any(override.lstrip("+").startswith("optimizer") for override in overrides)
    optimizer = cfg.get("optimizer") if requested or not cfg.run else None
    return RegistrationPipeline(
        model,
        instantiate_config(cfg.align, trusted),
        instantiate_config(optimizer, trusted) if optimizer else None,
        InferenceGrid(**grid),
        device=cfg.device or ("cuda" if torch.cuda.is_available() else "cpu"),
        **options,
    )


@dataclass(frozen=True)
class RegisteredImage:
    """The result of :func:`register`.

    ``warped`` is the moving image on the fixed grid: an array if the fixed image was an array, else
    a SimpleITK image.
    """

    warped: sitk.Image | NDArray
    result: RegistrationResult

    @property
    def transform(self) -> sitk.CompositeTransform:
        """Return the transform from fixed to moving world, LPS+ mm, for ``SimpleITK.Resample``."""
        return self.result.deformation.forward

    @property
    def inverse(self) -> sitk.CompositeTransform:
        """Return the transform from moving to fixed world, LPS+ mm."""
        return self.result.deformation.backward

    @property
    def displacement(self) -> NDArray[np.float32]:
        """Return u, (D, *spatial), with warped(x) = moving(x + u(x)) in indices of the arrays."""
        deformation = self.result.deformation
        field = transform_to_field(deformation.forward, deformation.fixed)
        return np.moveaxis(field_to_displacement(field, deformation.moving), -1, 0)


def load_case(image: ImageSource, mask: ImageSource | None = None) -> tuple[LoadedCase, NDArray]:
    """Convert an image in memory or a file to a case; also return it with its own dtype."""
    if isinstance(image, str | Path):
        volume = decode_image(Path(image))
    elif isinstance(image, sitk.Image):
        volume = Volume(sitk.GetArrayFromImage(image).T, coordinates.affine_from_sitk(image))
    else:
        volume = Volume(np.asarray(image), np.eye(4))
    array = volume.array
    if array.ndim not in (2, 3) or array.dtype.kind not in "biuf" or not np.isfinite(array).all():
        raise UserError("An image must be 2D or 3D with one channel and finite values.")
    case = LoadedCase(array.astype(np.float32), volume.affine)
    if mask is not None:
        inside = load_case(mask)[0].image
        if inside.shape != array.shape:
            raise UserError(
                f"A mask of shape {inside.shape} does not fit an image of shape {array.shape}."
            )
        case = replace(case, mask=(inside > 0).astype(np.int16))
    return case, array


def register(
    fixed: ImageSource,
    moving: ImageSource,
    *overrides: str,
    run: str | None = None,
    fixed_mask: ImageSource | None = None,
    moving_mask: ImageSource | None = None,
) -> RegisteredImage:
    """Register two images in memory, as ``register.py`` does with files.

    Args:
        fixed: A SimpleITK image, an array with voxels of 1 mm, or a file.
        moving: The image to warp onto the fixed one, likewise.
        *overrides: As on the command line, such as ``"align=rigid"``,
            ``"optimizer.max_seconds=10"``.
        run: Folder of a training run whose network to use; None: the model of the configuration.
        fixed_mask: Region of the fixed image that counts, on its grid.
        moving_mask: The same for the moving image.

    >>> y, x = np.mgrid[:24, :24]
    >>> fixed = np.exp(-((y - 12) ** 2 + (x - 12) ** 2) / 48).astype(np.float32)
    >>> moving = np.roll(fixed, 2, axis=0)
    >>> registered = register(fixed, moving, "model=identity", "align=identity", "device=cpu")
    >>> registered.displacement[:, 12, 12].round().tolist()
    [2.0, 0.0]
    """
    with initialize_config_dir(CONFIG_DIR, version_base="1.3"):
        run_override = [f"run={run}"] if run else []
        cfg = compose("register", [*expand_null_overrides(overrides), *run_override])
    fixed_case, _ = load_case(fixed, fixed_mask)
    moving_case, original = load_case(moving, moving_mask)
    result = build_pipeline(cfg, overrides)(fixed_case, moving_case)
    warped = warp_array(original, result.deformation)
    if not isinstance(fixed, np.ndarray):
        return RegisteredImage(coordinates.array_to_sitk(warped, fixed_case.affine), result)
    return RegisteredImage(warped, result)
