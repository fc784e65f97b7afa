"""From a configuration and files, or images in memory, to a registration."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813
import torch
from hydra import compose, initialize_config_dir
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf

from regnet_lab.config.checkpoints import checkpoint_path, load_weights
from regnet_lab.config.compose import CONF, left_out
from regnet_lab.config.instantiate import build
from regnet_lab.config.run_dir import kept
from regnet_lab.data.case import Case, Points
from regnet_lab.data.io.cases import Scan, read_scan
from regnet_lab.data.io.images import Volume, decode
from regnet_lab.errors import UserError
from regnet_lab.registration.inference_grid import ModelGrid
from regnet_lab.registration.output import delivered, write_outcome
from regnet_lab.registration.pipeline import Answer, Registrar, warped
from regnet_lab.registration.quality import Score, quality
from regnet_lab.spatial import coordinates
from regnet_lab.spatial.image_grid import flatten
from regnet_lab.spatial.learn2reg import voxels
from regnet_lab.spatial.writers import check_formats

log = logging.getLogger(__name__)

SIDES = ("fixed", "moving")
PARTS = ("labels", "mask", "points")
PREPARED = ("shape", "spacing", "intensity", "shared_range")


def remembered(run: DictConfig) -> dict[str, Any]:
    """Grid and intensity rule of a run: what its data was prepared with and ``grid.json``, which
    has the spacing that it found.
    """
    places = ("data.dataset.prepare", "data.dataset.images.prepare")  # of artificial deformations
    prepare: Any = next(filter(None, (OmegaConf.select(run, place) for place in places)), {})
    found = {key: prepare[key] for key in PREPARED if prepare.get(key) is not None}
    path = Path(run.folder) / "grid.json"
    if path.is_file():
        found |= json.loads(path.read_text(encoding="utf-8"))
    elif "spacing" not in found:
        log.warning(
            "%s does not say at which spacing it was trained: taken as the fixed image's; "
            "grid.spacing=<mm> tells it.",
            run.folder,
        )
    return found


def registrar_of(cfg: DictConfig, overrides: Sequence[str]) -> Registrar:
    """The registration a configuration describes: a run's network, or a model without weights.

    Args:
        cfg: See ``conf/register.yaml``.
        overrides: What the user changed in it: a run's answer is refined only if one of these
            speaks of ``refine``, for refinement forgets what labels taught.

    Raises:
        UserError: The run or a setting is faulty.
    """
    settings: dict[str, Any] = {"grid": {"largest": cfg.grid.largest, "axes": "world"}}
    if cfg.run:
        run = kept(cfg.run)
        module = build(run.module, cfg.allow)
        load_weights(module, checkpoint_path(cfg.run, cfg.checkpoint))
        model, known = module.model, remembered(run)
        settings = {key: known[key] for key in ("intensity", "shared_range") if key in known}
        settings["grid"] = {key: known.get(key) for key in ("shape", "spacing")}
        if run.ndim == 2:  # slices, or volumes slice by slice, as they are stored
            settings["grid"]["axes"] = "image"
    else:
        model = build(cfg.get("model"), cfg.allow)
    asked = {key: value for key, value in cfg.grid.items() if value is not None}
    settings["grid"] = ModelGrid(**(settings["grid"] | asked))
    rule = cfg.get("intensity") or settings.get("intensity")
    if rule is not None:
        settings["intensity"] = build(rule, cfg.allow)
    asked_for = any(override.lstrip("+").startswith("refine") for override in overrides)
    refine = cfg.get("refine") if asked_for or not cfg.run else None
    return Registrar(
        model,
        build(cfg.align, cfg.allow),
        build(refine, cfg.allow) if refine else None,
        device=cfg.device or ("cuda" if torch.cuda.is_available() else "cpu"),
        **settings,
    )


@dataclass(frozen=True)
class Job:
    """One pair of a user's: its files, by the names of the configuration's keys.

    Args:
        files: ``fixed``, ``moving`` and, where given, ``fixed_labels`` and so on.
        root: Folder to which they are relative.
        space: Of landmarks.
        columns: Of x, y(, z) in tables of landmarks, for each side.
    """

    files: Mapping[str, Any]
    root: Path
    space: str
    columns: Mapping[str, Sequence[int | str]]

    def case(self, side: str) -> Case:
        """The files of one side.

        Raises:
            UserError: Its image is not named.
        """
        if not self.files.get(side):
            raise UserError(f"say which images to register: {side}=<file>.")
        parts = {part: self.files.get(f"{side}_{part}") for part in PARTS}
        labels, mask, points = (self.root / str(file) if file else None for file in parts.values())
        marks = Points(points, tuple(self.columns[side]), self.space) if points else None
        phase = self.files.get(f"{side}_phase")
        phase = int(phase) if phase is not None else None
        return Case(side, self.root / str(self.files[side]), labels, mask, marks, phase)

    @cached_property
    def name(self) -> str:
        """Fixed and moving image's names."""
        named = [Path(str(self.files[side])).name.split(".")[0] for side in SIDES]
        return str(self.files.get("name") or "_".join(named))

    def read(self) -> tuple[Scan, Scan, NDArray]:
        """Both scans, and the moving image in its own dtype.

        Raises:
            UserError: A file is missing or faulty, or the two cannot be registered.
        """
        volumes: dict[Path, Volume] = {}

        def decoder(path: Path) -> Volume:
            return volumes[path] if path in volumes else volumes.setdefault(path, decode(path))

        cases = [self.case(side) for side in SIDES]
        fixed, moving = (read_scan(case, decoder) for case in cases)
        original = volumes[cases[1].image].array
        if original.ndim == 4:
            original = original[..., cases[1].phase]
        return fixed, moving, original


def job_of(cfg: DictConfig, row: Mapping[str, str] | None = None, root: str = "") -> Job:
    """The pair that the configuration names, or that a row of a list does."""
    keys = (*SIDES, *(f"{s}_{p}" for s in SIDES for p in (*PARTS, "phase")), "name")
    files = dict(row) if row is not None else {key: cfg.get(key) for key in keys}
    columns = {side: cfg[f"{side}_columns"] for side in SIDES}
    return Job(files, Path(root), cfg.points_space, columns)


def carry_out(registrar: Registrar, job: Job, folder: Path, cfg: DictConfig) -> Score:
    """Register one pair and write what came of it.

    Returns:
        Its quality.

    Raises:
        UserError: A file is faulty, the images cannot be registered, or the folder is no good;
            nothing is then left behind.
    """
    check_formats(cfg.formats, 3)
    with delivered(folder):
        pass  # so that it fails before the work and not after it
    fixed, moving, original = job.read()
    check_formats(cfg.formats, fixed.image.ndim)
    answer = registrar(fixed, moving, job.name)
    sheet = quality(answer, fixed, moving)
    with delivered(folder) as aside:
        write_outcome(
            aside, answer, fixed, moving, original, sheet, cfg.formats, cfg.suffix, cfg.points_space
        )
    return sheet


@dataclass(frozen=True)
class Registered:
    """What :func:`register` gives.

    Args:
        warped: The moving image on the fixed grid: a SimpleITK image, or an array if the fixed
            one was an array.
        answer: All that was found.
    """

    warped: sitk.Image | NDArray
    answer: Answer

    @property
    def transform(self) -> sitk.CompositeTransform:
        """From the fixed to the moving world, LPS+ mm: for ``SimpleITK.Resample``."""
        return self.answer.deformation.forward

    @property
    def inverse(self) -> sitk.CompositeTransform:
        """From the moving to the fixed world."""
        return self.answer.deformation.backward

    @property
    def displacement(self) -> NDArray[np.float32]:
        """(D, *spatial), warped(x) = moving(x + u(x)) between the indices of the two arrays."""
        found = self.answer.deformation
        return np.moveaxis(voxels(flatten(found.forward, found.fixed), found.moving), -1, 0)


def scan_of(image: sitk.Image | NDArray | str | Path, mask: Any = None) -> tuple[Scan, NDArray]:
    """An image in memory or in a file as a scan, and in its own dtype.

    Raises:
        UserError: It is faulty.
    """
    if isinstance(image, str | Path):
        volume = decode(Path(image))
    elif isinstance(image, sitk.Image):
        volume = Volume(sitk.GetArrayFromImage(image).T, coordinates.affine_of(image))
    else:
        volume = Volume(np.asarray(image), np.eye(4))
    array = volume.array
    if array.ndim not in (2, 3) or array.dtype.kind not in "biuf" or not np.isfinite(array).all():
        raise UserError("An image must be 2D or 3D, of one channel, and finite everywhere.")
    scan = Scan(array.astype(np.float32), volume.affine)
    if mask is not None:
        inside = scan_of(mask)[0].image
        if inside.shape != array.shape:
            raise UserError(f"A mask of shape {inside.shape} does not fit {array.shape} voxels.")
        scan = replace(scan, mask=(inside > 0).astype(np.int16))
    return scan, array


def register(
    fixed: sitk.Image | NDArray | str | Path,
    moving: sitk.Image | NDArray | str | Path,
    *overrides: str,
    run: str | None = None,
    fixed_mask: sitk.Image | NDArray | str | Path | None = None,
    moving_mask: sitk.Image | NDArray | str | Path | None = None,
) -> Registered:
    """Register two images in a notebook as ``register.py`` does with files.

    Args:
        fixed: A SimpleITK image, an array in voxels of 1 mm, or a file.
        moving: The same; it is brought onto the fixed one.
        *overrides: As on the command line, such as ``"align=rigid"``, ``"refine.seconds=10"``.
        run: Folder of a training run whose network to use; none: alignment and refinement alone.
        fixed_mask: Where the fixed image counts, on its grid.
        moving_mask: The same of the moving one.

    Raises:
        UserError: An image or a setting is faulty.
    """
    with initialize_config_dir(CONF, version_base="1.3"):
        cfg = compose("register", [*left_out(overrides), *([f"run={run}"] if run else [])])
    (target, _), (source, original) = scan_of(fixed, fixed_mask), scan_of(moving, moving_mask)
    answer = registrar_of(cfg, overrides)(target, source)
    array = warped(original, answer.deformation)
    as_array = isinstance(fixed, np.ndarray)
    return Registered(array if as_array else coordinates.to_image(array, target.affine), answer)
