"""Registration of pairs of files, as ``register.py`` configures them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from omegaconf import DictConfig

from regnet_lab.data.case import Case, LandmarkFile
from regnet_lab.data.io.cases import LoadedCase, read_case
from regnet_lab.data.io.images import decode_image
from regnet_lab.errors import UserError
from regnet_lab.registration.output import atomic_directory, write_results
from regnet_lab.registration.pipeline import RegistrationPipeline
from regnet_lab.registration.quality import QualityReport, assess_quality
from regnet_lab.spatial.writers import check_formats

SIDES = ("fixed", "moving")
ANNOTATIONS = ("labels", "mask", "points")
PAIR_KEYS = (*SIDES, *(f"{s}_{p}" for s in SIDES for p in (*ANNOTATIONS, "phase")), "name")


@dataclass(frozen=True)
class RegistrationJob:
    """A pair of image files to register.

    Args:
        files: ``fixed``, ``moving`` and others of ``PAIR_KEYS``.
        root: Folder to which the files are relative.
        space: Coordinates of landmarks: voxel, ras or lps.
        columns: Columns of x, y(, z) in the landmark table of each side.
    """

    files: Mapping[str, Any]
    root: Path
    space: str
    columns: Mapping[str, Sequence[int | str]]

    def build_case(self, side: str) -> Case:
        """Return the files of one side; raise UserError if its image is not named."""
        if not self.files.get(side):
            raise UserError(f"Name the images to register: {side}=<file>.")
        paths = (self.files.get(f"{side}_{part}") for part in ANNOTATIONS)
        labels, mask, table = (self.root / str(path) if path else None for path in paths)
        points = LandmarkFile(table, tuple(self.columns[side]), self.space) if table else None
        phase = self.files.get(f"{side}_phase")
        phase = int(phase) if phase is not None else None
        return Case(side, self.root / str(self.files[side]), labels, mask, points, phase)

    @cached_property
    def name(self) -> str:
        """Return the given name, or one made of the names of both images."""
        stems = [Path(str(self.files[side])).name.split(".")[0] for side in SIDES]
        return str(self.files.get("name") or "_".join(stems))

    def read(self) -> tuple[LoadedCase, LoadedCase, NDArray]:
        """Read both cases, and the moving image with its own dtype."""
        decoder = cache(decode_image)
        cases = [self.build_case(side) for side in SIDES]
        fixed, moving = (read_case(case, decoder) for case in cases)
        original = decoder(cases[1].image).array
        if original.ndim == 4:
            original = original[..., cases[1].phase]
        return fixed, moving, original


def build_job(
    cfg: DictConfig, row: Mapping[str, str] | None = None, root: str = ""
) -> RegistrationJob:
    """Return the job of the pair in the configuration, or in a row of a table of pairs."""
    files = dict(row) if row is not None else {key: cfg.get(key) for key in PAIR_KEYS}
    columns = {side: cfg[f"{side}_points_columns"] for side in SIDES}
    return RegistrationJob(files, Path(root), cfg.points_space, columns)


def register_and_save(
    pipeline: RegistrationPipeline, job: RegistrationJob, folder: Path, cfg: DictConfig
) -> QualityReport:
    """Register one pair, write the results into ``folder`` and return the quality report.

    An error leaves nothing behind.
    """
    check_formats(cfg.transform_formats, 3)
    with atomic_directory(folder) as temporary:  # first, so that a bad folder costs no time
        fixed, moving, original = job.read()
        check_formats(cfg.transform_formats, fixed.image.ndim)
        result = pipeline(fixed, moving, job.name)
        report = assess_quality(result, fixed, moving)
        options = cfg.transform_formats, cfg.image_suffix, cfg.points_space
        write_results(temporary, result, fixed, moving, original, report, *options)
    return report
