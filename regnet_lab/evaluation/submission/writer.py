"""Answers of a model as the file that a challenge takes."""

import logging
import shutil
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule, Trainer

from regnet_lab.errors import UserError
from regnet_lab.evaluation.submission.archive import moved, pack, written
from regnet_lab.evaluation.submission.formats import TASKS, Task, format_of, stems
from regnet_lab.evaluation.submission.original_grid import check, entries
from regnet_lab.training.callbacks.base import EachCase
from regnet_lab.types import Pair

log = logging.getLogger(__name__)


class SubmissionWriter(EachCase):
    """Write the displacement of every judged pair as a Learn2Reg challenge takes it, then a zip.

    Files are collected in a hidden folder beside ``folder`` and put in place when all are there,
    task by task: what other runs have written for other tasks of 2020 or 2021 stays and goes into
    the same ``<folder>.zip``.

    Args:
        year: Of the challenge, 2020 or later.
        folder: Of the submission.
        names: Since 2022 ``short``, ``long``, ``both``, or what the server takes, ``auto``.

    Raises:
        UserError: Before anything is judged, if there was no such year, ``names`` is unknown, or
            the data are not those of a challenge of that year.
    """

    def __init__(self, year: int, folder: str, names: str = "auto") -> None:
        self.year, self.folder, self.names = year, Path(folder), names
        self.aside = self.folder.with_name(f".{self.folder.name}.part")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.form = format_of(self.year)
        stems((0, 0), (0, 0), self.names)
        self.entries = entries(trainer.test_dataloaders.dataset)  # type: ignore[union-attr]
        check(
            "These data cannot be submitted",
            self.entries.values(),
            lambda e: self.form.folder(e.task) + str(self.form.shape(e.task, e.shape)),
        )
        if not self.form.foldered and len({e.task for e in self.entries.values()}) > 1:
            raise UserError(f"submission={self.form.year} takes one data set: evaluate each alone.")
        if trainer.is_global_zero:
            shutil.rmtree(self.aside, ignore_errors=True)
        trainer.strategy.barrier()

    def judged(self, module: LightningModule, outputs: Any, pair: Pair, place: int) -> None:
        name = pair["name"][0]
        entry = self.entries[name]
        (u,) = outputs["registration"].displacement.float().cpu().numpy()
        try:
            content = self.form.encode(entry.task, entry.carried(u))
        except UserError as error:
            raise UserError(f"{name}: {error}") from error
        names = "short" if self.form.foldered else self.names
        for stem in stems(*entry.images, names):
            file = f"{self.form.folder(entry.task)}{stem}{self.form.endings[0]}"
            with written(self.aside / file) as part:
                part.write_bytes(content)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.strategy.barrier()
        if not trainer.is_global_zero:
            return
        moved(self.aside, self.folder)
        archive = self.folder.with_name(f"{self.folder.name}.zip")
        pack(self.folder, archive)
        done = min(sum(trainer.num_test_batches) * trainer.world_size, len(self.entries))
        log.info("The submission of %d pairs: %s", done, archive)
        if done < len(self.entries):
            log.warning(
                "%d pairs are missing: this is no full submission", len(self.entries) - done
            )
        if missing := sorted(f for f in map(self._folder, TASKS) if not (self.folder / f).is_dir()):
            log.warning(
                "The challenge of %d also wants %s: evaluate those data with "
                "callbacks.submission.folder=%s",
                self.form.year,
                ", ".join(missing),
                self.folder,
            )

    def _folder(self, task: Task) -> str:
        return task.folders.get(self.form.year, "")
