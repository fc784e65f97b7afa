"""A submission, ours or another's, in the place of a model."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from regnet_lab.errors import UserError
from regnet_lab.evaluation.submission.archive import Files, files
from regnet_lab.evaluation.submission.formats import FORMATS, Field, Format, stems
from regnet_lab.evaluation.submission.original_grid import Entry, check
from regnet_lab.metrics.tables import COST
from regnet_lab.ops.pairs import registered
from regnet_lab.training.module import RegistrationModule, Score
from regnet_lab.types import Pair, Registration


def candidates(form: Format, entry: Entry) -> list[str]:
    """The files in which a pair's displacement may be, the usual one first."""
    if form.foldered and form.year not in entry.task.folders:
        return []
    found = stems(*entry.images, "short" if form.foldered else "both")
    return [form.folder(entry.task) + stem + ending for stem in found for ending in form.endings]


def recognise(path: Path, names: Iterable[str], listed: Iterable[Entry]) -> Format:
    """The form in which most of the pairs are there.

    Raises:
        UserError: None of them is.
    """
    names, listed = set(names), list(listed)
    looked = {form: [candidates(form, entry) for entry in listed] for form in FORMATS}
    counts = {form: sum(not names.isdisjoint(c) for c in looked[form]) for form in FORMATS}
    best = max(counts, key=counts.__getitem__)
    if not counts[best]:
        usual = " or ".join(found[0][0] for found in looked.values() if found[0])
        raise UserError(f"{path}: holds no displacement of these pairs, such as {usual}.")
    return best


class Submission:
    """The displacements of a folder or a zip for the pairs of a data set.

    Everything is read and checked at once.

    Raises:
        UserError: Files are missing, damaged, or not of the type, shape or values they must have.
    """

    def __init__(self, path: str | Path, listed: Mapping[str, Entry]) -> None:
        self.path, self.entries = Path(path), listed
        self.files: Files = files(self.path)
        self.form = recognise(self.path, self.files, listed.values())
        check(f"{self.path}: cannot be judged", listed.values(), self.read)

    def read(self, entry: Entry) -> Field:
        """The displacement of a pair, (3, *published grid).

        Raises:
            UserError: It is missing or faulty.
        """
        wanted = candidates(self.form, entry)
        found = [name for name in wanted if name in self.files]
        if not found:
            raise UserError(f"{wanted[0] if wanted else entry.cases[0].name} is missing.")
        return self.form.decode(entry.task, entry.shape, found[0], self.files[found[0]]())


class Submitted(RegistrationModule):
    """Answers every pair with what was submitted for it.

    Args:
        submission: Holds the displacements.
        score: Judges a pair.
        name: What the submission is called in tables.
    """

    def __init__(self, submission: Submission, score: Score, name: str) -> None:
        super().__init__(nn.Identity(), {}, None, score=score, name=name)  # type: ignore[arg-type]
        self.submission = submission

    def forward(self, pair: Pair) -> Registration:
        u = self.submission.read(self.submission.entries[pair["name"][0]])
        return registered(pair, [torch.from_numpy(u)[None].to(pair["fixed"])])

    def test_step(self, pair: Pair, index: int) -> dict[str, Any]:
        """As for a model, but that reading a file is no cost of registration."""
        step = super().test_step(pair, index)
        records = [{k: v for k, v in r.items() if k not in COST} for r in step["records"]]
        return {**step, "records": records}
