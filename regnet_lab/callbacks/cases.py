"""The judged cases as tables and pictures."""

import json
from itertools import chain
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from rich.console import Console

from regnet_lab.callbacks.each import EachCase
from regnet_lab.pair import Pair
from regnet_lab.report import figures, tables
from regnet_lab.report.files import write_figure
from regnet_lab.together import gathered


class CaseTable(EachCase):
    """Write every judged case as it is done, then the tables of all of them; print the summary.

    Args:
        folder: Gets ``records.jsonl``, ``cases.csv``, ``labels.csv``, ``summary.json``,
            ``summary.md`` and ``pictures/``.
        pictures: Number of cases of which a picture is made.
    """

    def __init__(self, folder: str, pictures: int = 4) -> None:
        self.folder, self.pictures = Path(folder), pictures
        self.records: list[dict[str, Any]] = []
        self.rows: list[list[dict[str, Any]]] = []

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.journal = self.folder / f"records.{trainer.global_rank}.jsonl"
        self.journal.unlink(missing_ok=True)
        self.rows = []

    def judged(self, module: LightningModule, outputs: Any, pair: Pair, place: int) -> None:
        self.rows.append(outputs["records"])
        with self.journal.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(record) + "\n" for record in outputs["records"])
        if place < self.pictures:
            picture = self.folder / "pictures" / f"{pair['name'][0]}.png"
            write_figure(picture, figures.panel(pair, outputs["registration"]))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.records += chain(*gathered(self.rows))
        if trainer.is_global_zero:
            tables.write(self.records, self.folder)
            Console().print(tables.rich_table(tables.summary(self.records)))
