"""Read a submission and score its displacements in place of a model."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from regnet_lab.errors import UserError
from regnet_lab.evaluation.submission import formats
from regnet_lab.evaluation.submission.archive import FileReaders, list_files
from regnet_lab.evaluation.submission.formats import FORMATS, SubmissionFormat
from regnet_lab.evaluation.submission.original_grid import ChallengePair, check_pairs
from regnet_lab.metrics.tables import COST_COLUMNS
from regnet_lab.ops.pairs import apply_displacement
from regnet_lab.training.module import RegistrationModule, Scorer
from regnet_lab.types import Pair, Registration


def list_candidate_files(form: SubmissionFormat, pair: ChallengePair) -> list[str]:
    """Return the files that may hold the displacement of a pair, the usual one first."""
    if form.is_half and form.year not in pair.task.folders:
        return []
    stems = formats.make_file_stems(*pair.image_ids, "short" if form.is_half else "both")
    prefix = form.get_folder_prefix(pair.task)
    return [prefix + stem + suffix for stem in stems for suffix in form.suffixes]


def detect_format(
    path: Path, files: Iterable[str], pairs: Iterable[ChallengePair]
) -> SubmissionFormat:
    """Return the format in which most of the pairs have a file."""
    files, pairs = set(files), list(pairs)
    candidates = {form: [list_candidate_files(form, pair) for pair in pairs] for form in FORMATS}
    counts = {form: sum(not files.isdisjoint(c) for c in candidates[form]) for form in FORMATS}
    best = max(counts, key=counts.__getitem__)
    if not counts[best]:
        examples = " or ".join(by_pair[0][0] for by_pair in candidates.values() if by_pair[0])
        raise UserError(f"{path}: holds no displacement of these pairs, such as {examples}.")
    return best


class Submission:
    """The displacements in a folder or a zip for the pairs of a data set, by name.

    All files are read and checked by the constructor.
    """

    def __init__(self, path: str | Path, challenge_pairs: Mapping[str, ChallengePair]) -> None:
        self.path, self.challenge_pairs = Path(path), challenge_pairs
        self.files: FileReaders = list_files(self.path)
        self.format = detect_format(self.path, self.files, challenge_pairs.values())
        check_pairs(f"{self.path}: cannot be scored", challenge_pairs.values(), self.read)

    def read(self, pair: ChallengePair) -> formats.Field:
        """Read the displacement of a pair, (3, *original grid)."""
        candidates = list_candidate_files(self.format, pair)
        file = next((name for name in candidates if name in self.files), None)
        if file is None:
            raise UserError(f"{candidates[0] if candidates else pair.cases[0].name} is missing.")
        return self.format.decode(pair.task, pair.shape, file, self.files[file]())


class SubmissionModule(RegistrationModule):
    """Module that returns the submitted displacement of every pair."""

    def __init__(self, submission: Submission, score: Scorer, name: str) -> None:
        super().__init__(nn.Identity(), {}, None, metrics=score, name=name)  # type: ignore[arg-type]
        self.submission = submission

    def forward(self, pair: Pair) -> Registration:
        u = self.submission.read(self.submission.challenge_pairs[pair["name"][0]])
        return apply_displacement(pair, [torch.from_numpy(u)[None].to(pair["fixed"])])

    def test_step(self, pair: Pair, index: int) -> dict[str, Any]:
        """Score as for a model, without the costs: reading a file is no registration."""
        outputs = super().test_step(pair, index)
        for record in outputs["records"]:
            for cost in COST_COLUMNS:
                record.pop(cost, None)
        return outputs
