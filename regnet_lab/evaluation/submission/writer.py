"""Write the displacements of a model as a Learn2Reg submission."""

import logging
import shutil
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule, Trainer

from regnet_lab.errors import UserError
from regnet_lab.evaluation.submission import formats, original_grid
from regnet_lab.evaluation.submission.archive import move_displacements, write_zip
from regnet_lab.training.callbacks.base import CaseCallback
from regnet_lab.types import Pair
from regnet_lab.utils.atomic_io import write_bytes

log = logging.getLogger(__name__)


class SubmissionWriter(CaseCallback):
    """Write the displacement of every scored pair in the format of a challenge, then a zip.

    Files are staged in a hidden folder beside ``folder`` and moved when all are written, task by
    task: what other runs have written for other tasks of 2020 or 2021 stays and goes into the same
    ``<folder>.zip``.

    Args:
        year: Year of the challenge, 2020 or later.
        folder: Folder of the submission.
        file_names: Since 2022 ``short``, ``long``, ``both``, or what the server takes, ``auto``.

    Raises:
        UserError: Before anything is scored, if there was no challenge in that year, the style of
            file names is unknown, or the data are not those of a challenge of that year.
    """

    def __init__(self, year: int, folder: str, file_names: str = "auto") -> None:
        self.year, self.folder, self.file_names = year, Path(folder), file_names
        self.staging_folder = self.folder.with_name(f".{self.folder.name}.part")
        self.challenge_pairs: dict[str, original_grid.ChallengePair] = {}
        formats.make_file_stems((0, 0), (0, 0), self.file_names)  # raises if the style is unknown

    @property
    def format(self) -> formats.SubmissionFormat:
        """Format of the challenge of the year."""
        return formats.find_format(self.year)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.challenge_pairs = original_grid.list_challenge_pairs(trainer.test_dataloaders.dataset)  # type: ignore[union-attr]
        pairs = self.challenge_pairs.values()
        original_grid.check_pairs("These data cannot be submitted", pairs, self._check_pair)
        if not self.format.is_half and len({pair.task for pair in pairs}) > 1:
            raise UserError(
                f"submission={self.format.year} takes one data set: evaluate each alone."
            )
        if trainer.is_global_zero:
            shutil.rmtree(self.staging_folder, ignore_errors=True)
        trainer.strategy.barrier()

    def _check_pair(self, pair: original_grid.ChallengePair) -> None:
        self.format.get_folder_prefix(pair.task)
        self.format.compute_shape(pair.task, pair.shape)

    def on_test_case_end(
        self, module: LightningModule, outputs: Any, pair: Pair, place: int
    ) -> None:
        name = pair["name"][0]
        challenge_pair = self.challenge_pairs[name]
        task = challenge_pair.task
        (u,) = outputs["registration"].displacement.float().cpu().numpy()
        try:
            content = self.format.encode(task, challenge_pair.resample_to_original(u))
        except UserError as error:
            raise UserError(f"{name}: {error}") from error
        style = "short" if self.format.is_half else self.file_names
        for stem in formats.make_file_stems(*challenge_pair.image_ids, style):
            file = f"{self.format.get_folder_prefix(task)}{stem}{self.format.suffixes[0]}"
            write_bytes(self.staging_folder / file, content)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.strategy.barrier()
        if not trainer.is_global_zero:
            return
        move_displacements(self.staging_folder, self.folder)
        archive = self.folder.with_name(f"{self.folder.name}.zip")
        write_zip(self.folder, archive)
        total = len(self.challenge_pairs)
        written = min(sum(trainer.num_test_batches) * trainer.world_size, total)
        log.info("Submission of %d pairs: %s", written, archive)
        if written < total:
            log.warning("%d pairs are missing: the submission is incomplete.", total - written)
        folders = {task.folders.get(self.format.year, "") for task in formats.CHALLENGE_TASKS}
        if missing := sorted(f for f in folders if not (self.folder / f).is_dir()):
            log.warning(
                "The challenge of %d also wants %s: evaluate those data with "
                "callbacks.submission.folder=%s",
                self.format.year,
                ", ".join(missing),
                self.folder,
            )
