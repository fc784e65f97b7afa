"""Registration of pairs of files, as ``register.py`` configures them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf

from regnet_lab.config.folders import require_same_settings
from regnet_lab.config.settings import MACHINE_KEYS, flatten
from regnet_lab.data.case import Case, LandmarkFile
from regnet_lab.data.io.cases import LoadedCase, read_case
from regnet_lab.data.io.images import decode_image
from regnet_lab.data.io.landmarks import check_landmark_counts
from regnet_lab.data.io.tables import parse_whole_number
from regnet_lab.errors import UserError
from regnet_lab.registration.inference_grid import get_grid
from regnet_lab.registration.output import atomic_directory, write_results
from regnet_lab.registration.pipeline import RegistrationPipeline
from regnet_lab.registration.quality import QualityReport, assess_quality
from regnet_lab.spatial.coordinates import lies_in_xy_plane
from regnet_lab.spatial.image_grid import ImageGrid
from regnet_lab.spatial.nifti import read_header
from regnet_lab.spatial.writers import check_formats

SETTINGS_FILE = "settings.json"
SIDES = ("fixed", "moving")
ANNOTATIONS = ("labels", "mask", "points")
PAIR_KEYS = (*SIDES, *(f"{s}_{p}" for s in SIDES for p in (*ANNOTATIONS, "phase")), "name")


def embed_slice(case: LoadedCase) -> LoadedCase:
    """Return a 2D case as a volume of one slice, which may have any orientation."""
    if case.image.ndim == 3:
        return case
    labels, mask = (None if a is None else a[..., None] for a in (case.labels, case.mask))
    points = None if case.points is None else np.pad(case.points, ((0, 0), (0, 1)))
    return replace(case, image=case.image[..., None], labels=labels, mask=mask, points=points)


@dataclass(frozen=True)
class RegistrationJob:
    """A pair of image files to register.

    Args:
        files: ``fixed``, ``moving`` and others of ``PAIR_KEYS``.
        root: Folder to which the files are relative.
        space: Coordinates of landmarks: voxel, ras or lps.
        columns: Columns of x, y(, z) in the landmark table of each side.
        trust_array_order: Take labels and masks of their image's shape in array order.
    """

    files: Mapping[str, Any]
    root: Path
    space: str
    columns: Mapping[str, Sequence[int | str] | None]
    trust_array_order: bool = False

    def build_case(self, side: str) -> Case:
        """Return the files of one side; raise UserError if its image is not named."""
        if not self.files.get(side):
            raise UserError(f"Name the images to register: {side}=<file>.")
        paths = (self.files.get(f"{side}_{part}") for part in ANNOTATIONS)
        labels, mask, table = (self.root / str(path) if path else None for path in paths)
        columns = self.columns.get(side)
        columns = None if columns is None else tuple(columns)
        points = LandmarkFile(table, columns, self.space) if table else None
        phase = self.files.get(f"{side}_phase")
        if phase is not None:
            phase = parse_whole_number(phase, f"{self.name}, {side}_phase")
        return Case(side, self.root / str(self.files[side]), labels, mask, points, phase)

    @cached_property
    def name(self) -> str:
        """Return the given name, or one made of the names of both images."""
        stems = [Path(str(self.files[side])).name.split(".")[0] for side in SIDES]
        return str(self.files.get("name") or "_".join(stems))

    def build_grid(self, side: str, case: LoadedCase) -> ImageGrid:
        """Return the grid of the image of one side with the header of its file."""
        header = read_header(self.root / str(self.files[side]))
        return replace(get_grid(case), header=header)

    def read(self) -> tuple[LoadedCase, LoadedCase, NDArray]:
        """Read both cases, and the moving image with its own dtype.

        Slices outside the x-y plane of the world, which ITK cannot hold in 2D, become volumes.
        """
        decoder = cache(decode_image)
        cases = [self.build_case(side) for side in SIDES]
        fixed, moving = (read_case(case, decoder, self.trust_array_order) for case in cases)
        counts = [None if c.points is None else len(c.points) for c in (fixed, moving)]
        check_landmark_counts((cases[0], cases[1]), counts)
        original = decoder(cases[1].image).array
        if original.ndim == 4:
            original = original[..., cases[1].phase]
        if fixed.image.ndim == 2 and not all(lies_in_xy_plane(c.affine) for c in (fixed, moving)):
            return embed_slice(fixed), embed_slice(moving), original[..., None]
        return fixed, moving, original


def build_job(
    cfg: DictConfig, row: Mapping[str, str] | None = None, root: str = ""
) -> RegistrationJob:
    """Return the job of the pair in the configuration, or in a row of a table of pairs."""
    files = dict(row) if row is not None else {key: cfg.get(key) for key in PAIR_KEYS}
    columns = {side: cfg[f"{side}_points_columns"] for side in SIDES}
    return RegistrationJob(files, Path(root), cfg.points_space, columns, cfg.trust_array_order)


def collect_settings(cfg: DictConfig, job: RegistrationJob) -> dict[str, Any]:
    """Return what decides the result of a registration: its files and the configuration."""
    settings: Any = OmegaConf.to_container(cfg, resolve=True)
    files = {key: None if value is None else str(value) for key, value in job.files.items()}
    own = {*PAIR_KEYS, *MACHINE_KEYS, "pairs", "output_dir", "overwrite"}
    return {**{k: v for k, v in settings.items() if k not in own}, **files, "root": str(job.root)}


def require_no_other_registration(
    folder: Path, settings: Mapping[str, Any], overwrite: bool
) -> None:
    """Refuse a folder that holds another registration, unless ``overwrite`` is set."""
    path = folder / SETTINGS_FILE
    if overwrite or not path.is_file():
        return
    try:
        earlier = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        earlier = {}
    require_same_settings(folder, "registration", flatten(dict(settings)), flatten(earlier))


def register_and_save(
    pipeline: RegistrationPipeline, job: RegistrationJob, folder: Path, cfg: DictConfig
) -> QualityReport:
    """Register one pair, write the results into ``folder`` and return the quality report.

    An error leaves nothing behind.
    """
    check_formats(cfg.transform_formats)
    settings = collect_settings(cfg, job)
    require_no_other_registration(folder, settings, cfg.overwrite)
    with atomic_directory(folder) as temporary:  # first, so that a bad folder costs no time
        fixed, moving, original = job.read()
        fixed_grid, moving_grid = job.build_grid("fixed", fixed), job.build_grid("moving", moving)
        check_formats(cfg.transform_formats, fixed_grid, moving_grid)
        result = pipeline(fixed, moving, job.name)
        deformation = replace(result.deformation, fixed=fixed_grid, moving=moving_grid)
        result = replace(result, deformation=deformation)
        report = assess_quality(result, fixed, moving)
        options = cfg.transform_formats, cfg.image_suffix, cfg.points_space
        write_results(temporary, result, fixed, moving, original, report, *options)
        (temporary / SETTINGS_FILE).write_text(json.dumps(settings, indent=2), encoding="utf-8")
    return report
