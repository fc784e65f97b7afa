"""Registration of images in memory, and the pipeline that a configuration describes."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from hydra import compose, initialize_config_dir
from numpy.typing import ArrayLike, NDArray
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from regnet_lab.config.checkpoints import find_checkpoint, load_weights
from regnet_lab.config.instantiate import instantiate_config, instantiate_run_config
from regnet_lab.config.overrides import prepare_overrides
from regnet_lab.config.run_dir import load_run_config
from regnet_lab.data.io.cases import LoadedCase
from regnet_lab.data.io.images import Volume
from regnet_lab.data.io.labels import convert_mask, place_on_image_grid
from regnet_lab.errors import UserError
from regnet_lab.registration.image_types import ImageSource, convert_to_type_of, load_volume
from regnet_lab.registration.inference_grid import InferenceGrid
from regnet_lab.registration.mapping import warp_array
from regnet_lab.registration.pipeline import RegistrationPipeline, RegistrationResult
from regnet_lab.spatial.image_grid import transform_to_field
from regnet_lab.spatial.learn2reg import field_to_displacement
from regnet_lab.utils.paths import CONFIG_DIR

log = logging.getLogger(__name__)

PREPARATION_KEYS = ("shape", "spacing", "intensity", "shared_range")


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
        module = instantiate_run_config(run.module, trusted)
        load_weights(module, find_checkpoint(cfg.run, cfg.checkpoint))
        model, training = module.model, load_training_grid(run)
        grid = {key: training.get(key) for key in ("shape", "spacing")}
        if run.ndim == 2:  # slices, or volumes slice by slice, are registered as stored
            grid["orientation"] = "image"
    else:
        model = instantiate_config(cfg.get("model"), trusted)
    grid |= {str(key): value for key, value in cfg.grid.items() if value is not None}
    options = {key: training[key] for key in ("intensity", "shared_range") if key in training}
    if cfg.get("intensity"):
        options["intensity"] = instantiate_config(cfg.intensity, trusted)
    elif training.get("intensity") is not None:
        options["intensity"] = instantiate_run_config(training["intensity"], trusted)
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

    ``warped`` is the moving image on the fixed grid, in the type in which it was given; a SimpleITK
    image if it was a file.
    """

    warped: Any
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


def read_mask(mask: ImageSource, image: Volume) -> NDArray[np.uint8]:
    """Return a mask, 1 inside and 0 outside, on the grid of an image.

    Arrays and tensors have that grid; others are brought to it through world coordinates.
    """
    volume = load_volume(mask)
    if isinstance(mask, np.ndarray | Tensor):
        if volume.array.shape != image.array.shape:
            raise UserError(
                f"A mask of shape {volume.array.shape} does not fit an image of shape "
                f"{image.array.shape}."
            )
        volume = replace(volume, affine=image.affine)
    path = Path(mask) if isinstance(mask, str | Path) else Path("mask")
    return place_on_image_grid(volume, path, image, Path("image"), convert_mask)


def build_case(image: Volume, mask: ImageSource | None = None) -> LoadedCase:
    """Return the case of an image and its mask."""
    inside = None if mask is None else read_mask(mask, image)
    return LoadedCase(image.array.astype(np.float32), image.affine, mask=inside)


def register(
    fixed: ImageSource,
    moving: ImageSource,
    *overrides: str,
    run: str | None = None,
    fixed_mask: ImageSource | None = None,
    moving_mask: ImageSource | None = None,
    spacing: ArrayLike | None = None,
    affine: ArrayLike | None = None,
    moving_spacing: ArrayLike | None = None,
    moving_affine: ArrayLike | None = None,
) -> RegisteredImage:
    """Register two images in memory, as ``register.py`` does with files.

    Args:
        fixed: An image of nibabel or SimpleITK, a file, or an array or tensor (*spatial).
        moving: The image to warp onto the fixed one, likewise.
        *overrides: As on the command line, such as ``"align=rigid"``,
            ``"optimizer.max_seconds=10"``.
        run: Folder of a training run whose network to use; None: the model of the configuration.
        fixed_mask: Region of the fixed image that counts.
        moving_mask: The same for the moving image.
        spacing: Millimetres per voxel of arrays and tensors, one number or one per axis; None: 1.
        affine: (4, 4) from voxels of arrays and tensors to millimetres, RAS+, in place of
            ``spacing``.
        moving_spacing: The spacing of the moving array if it differs from that of the fixed one.
        moving_affine: The affine of the moving array if it differs from that of the fixed one.

    >>> y, x = np.mgrid[:24, :24]
    >>> fixed = np.exp(-((y - 12) ** 2 + (x - 12) ** 2) / 48).astype(np.float32)
    >>> moving = np.roll(fixed, 2, axis=0)
    >>> registered = register(fixed, moving, "model=identity", "align=identity", "device=cpu")
    >>> registered.displacement[:, 12, 12].round().tolist()
    [2.0, 0.0]
    """
    if moving_spacing is None and moving_affine is None and isinstance(moving, np.ndarray | Tensor):
        moving_spacing, moving_affine = spacing, affine
    if not isinstance(fixed, np.ndarray | Tensor) and isinstance(moving, np.ndarray | Tensor):
        spacing = affine = None  # those of the moving image
    fixed_volume = load_volume(fixed, spacing, affine)
    moving_volume = load_volume(moving, moving_spacing, moving_affine)
    with initialize_config_dir(CONFIG_DIR, version_base="1.3"):
        words = [*overrides, *([f"run={run}"] if run else [])]
        cfg = compose("register", prepare_overrides(words))
    fixed_case = build_case(fixed_volume, fixed_mask)
    moving_case = build_case(moving_volume, moving_mask)
    result = build_pipeline(cfg, overrides)(fixed_case, moving_case)
    warped = warp_array(moving_volume.array, result.deformation)
    return RegisteredImage(convert_to_type_of(moving, warped, fixed_case.affine), result)
