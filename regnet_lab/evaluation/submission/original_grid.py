"""Read pairs of a challenge on the original grid, on which it scores displacements.

The original grid is that of the fixed image as released.  A model may see a pair cropped, padded
or at another spacing; its displacement is resampled to the original grid through the affine maps
of the preprocessing.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import nibabel
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from regnet_lab import ops
from regnet_lab.data.case import Case
from regnet_lab.data.datasets.base import as_pair_dataset, collect_errors
from regnet_lab.data.io.images import IMAGE_READ_ERRORS
from regnet_lab.data.preprocessing import functional
from regnet_lab.data.preprocessing.functional import Matrix
from regnet_lab.data.preprocessing.grids import CropOrPad, PairPreprocessor
from regnet_lab.data.worker_monitor import WorkerMonitor
from regnet_lab.errors import UserError
from regnet_lab.evaluation.submission import formats
from regnet_lab.evaluation.submission.formats import Field, Shape
from regnet_lab.types import Pair, update_pair

MAX_ERRORS_SHOWN = 8


def resample_displacement(
    u: NDArray, source: tuple[Matrix, Matrix], target: tuple[Matrix, Matrix], shape: Shape
) -> Field:
    """Resample a displacement from one pair of fixed and moving grids to another.

    With F, M the matrices from target voxels to those of the images and f, m from source voxels,
    y is mapped to M^-1 m (x + u(x)) where x = f^-1 F y.  u is interpolated linearly and continued
    constantly; the result is exact where the grids differ by whole voxels.

    Args:
        u: (D, *source grid), in its voxels.
        source: (D+1, D+1) matrices from source voxels to those of the fixed and moving image.
        target: (D+1, D+1) matrices from target voxels to those of the fixed and moving image.
        shape: Shape of the target's fixed grid.

    Returns:
        (D, *shape), in voxels of the target's moving grid.
    """
    target_to_source = np.linalg.inv(source[0]) @ target[0]
    source_to_target = np.linalg.inv(target[1]) @ source[1]
    grid_motion = source_to_target @ target_to_source - np.eye(len(source_to_target))
    y = np.indices(shape).reshape(len(shape), -1)
    samples = sample_field(u, target_to_source, shape).reshape(len(u), -1)
    rotated = source_to_target[:-1, :-1] @ samples
    result = rotated + grid_motion[:-1, :-1] @ y + grid_motion[:-1, -1:]
    return result.reshape(len(u), *shape).astype(np.float32)


def sample_field(u: NDArray, matrix: Matrix, shape: Shape) -> NDArray[np.float32]:
    """Sample each component of u at the points to which ``matrix`` maps the voxels of a grid."""
    if (offset := functional.find_integer_shift(matrix)) is not None:
        return np.stack([functional.shift_array_with_border(c, offset, shape) for c in u])
    points = matrix[:-1, :-1] @ np.indices(shape).reshape(len(u), -1) + matrix[:-1, -1:]
    points_tensor = torch.from_numpy(points.reshape(1, len(u), *shape)).float()
    return ops.sample(torch.from_numpy(u)[None], points_tensor)[0].numpy()


def read_shape(path: str | Path) -> Shape:
    """Read the shape in the header of an image."""
    try:
        return nibabel.load(path).shape  # type: ignore[attr-defined]
    except FileNotFoundError as error:
        raise UserError(f"{path}: this file is missing.") from error
    except IMAGE_READ_ERRORS as error:
        raise UserError(f"{path}: cannot be read as an image; replace it.") from error


@dataclass(frozen=True)
class ChallengePair:
    """A pair of a challenge; ``preprocessor`` makes the pair that a model sees."""

    task: formats.ChallengeTask
    image_ids: tuple[formats.ImageId, formats.ImageId]  # of the fixed and the moving image
    cases: tuple[Case, Case]
    preprocessor: PairPreprocessor

    @cached_property
    def shape(self) -> Shape:
        """Shape of the original grid."""
        expected = self.task.shape or read_shape(self.cases[0].image)
        for case in self.cases:
            actual = read_shape(case.image)
            fits = len(actual) == len(expected) and all(np.less_equal(actual, expected))
            if actual != expected and not (self.task.is_padded and fits):
                raise UserError(
                    f"{case.image}: has shape {actual}, but {expected} is the shape of the "
                    "challenge."
                )
        return expected

    @cached_property
    def original_preprocessor(self) -> CropOrPad:
        """Preprocessor for the original grid, with the intensities and labels a model sees."""
        model_preprocessor = self.preprocessor
        return CropOrPad(
            self.shape,
            intensity=model_preprocessor.intensity,
            labels=model_preprocessor.labels,
            shared_range=model_preprocessor.shared_range,
            trust_array_order=model_preprocessor.trust_array_order,
            cache=None,
        )

    def read_original_pair(self) -> Pair:
        """Read the pair on the original grid, with unchanged labels and landmarks."""
        return self.original_preprocessor(*self.cases)

    def resample_to_original(self, u: NDArray) -> Field:
        """Resample a model's displacement to the original grid."""
        fixed, moving = (self.preprocessor.read_case(case) for case in self.cases)
        model_grids, original_grids = (
            (grid.compute_grid(fixed, fixed)[1], grid.compute_grid(moving, fixed)[1])
            for grid in (self.preprocessor, self.original_preprocessor)
        )
        return resample_displacement(u, model_grids, original_grids, self.shape)


def make_challenge_pair(fixed: Case, moving: Case, preprocessor: PairPreprocessor) -> ChallengePair:
    """Identify a pair of cases as one of a challenge."""
    fixed_task, fixed_id = formats.identify_task(fixed.name)
    moving_task, moving_id = formats.identify_task(moving.name)
    if fixed_task != moving_task:
        raise UserError(f"{fixed.name} and {moving.name} belong to two tasks of Learn2Reg.")
    return ChallengePair(fixed_task, (fixed_id, moving_id), (fixed, moving), preprocessor)


def list_challenge_pairs(dataset: Dataset[Pair]) -> dict[str, ChallengePair]:
    """Return the challenge pairs of a data set or a mixture, by the name of the pair in it."""
    if isinstance(dataset, WorkerMonitor):
        dataset = dataset.dataset
    pairs = as_pair_dataset(dataset)
    if pairs.parts:
        return {
            f"{part_name}_{name}": pair
            for part_name, part in pairs.parts.items()
            for name, pair in list_challenge_pairs(part).items()
        }
    preprocessor = pairs.prepare
    if not isinstance(preprocessor, PairPreprocessor):
        raise UserError(
            "These pairs are made in memory: a submission needs the data of a challenge."
        )
    return {
        f"{fixed.name}_{moving.name}": make_challenge_pair(fixed, moving, preprocessor)
        for fixed, moving in pairs.case_pairs
    }


def check_pairs(
    title: str, pairs: Iterable[ChallengePair], check: Callable[[ChallengePair], object]
) -> None:
    """Check every pair, then report all errors at once.

    Raises:
        UserError: Names each different error that ``check`` raised.
    """
    messages: list[str] = []
    for pair in pairs:
        with collect_errors(messages):
            check(pair)
    errors = list(dict.fromkeys(message.rstrip(".") for message in messages))
    if errors:
        more = f"; and {len(errors) - MAX_ERRORS_SHOWN} more" if errors[MAX_ERRORS_SHOWN:] else ""
        raise UserError(f"{title}: {'; '.join(errors[:MAX_ERRORS_SHOWN])}{more}.")


class OriginalGridPairs(Dataset[Pair]):
    """The pairs of a data set on their original grids, on which a challenge scores them."""

    def __init__(self, dataset: Dataset[Pair]) -> None:
        self.challenge_pairs = list_challenge_pairs(dataset)

    def __len__(self) -> int:
        return len(self.challenge_pairs)

    def __getitem__(self, index: int) -> Pair:
        name = list(self.challenge_pairs)[index]
        return update_pair(self.challenge_pairs[name].read_original_pair(), name=name)
