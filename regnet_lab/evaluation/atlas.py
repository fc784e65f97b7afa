"""Make an atlas of the images that occur in a split."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Trainer
from rich.console import Console
from torch import Tensor
from torch.utils.data import DataLoader

from regnet_lab.data.datasets.unique_images import Population, Subject, population
from regnet_lab.errors import UserError
from regnet_lab.evaluation import atlas_functional
from regnet_lab.evaluation.label_fusion import Ballot, array, hold, leave_one_out
from regnet_lab.metrics import tables
from regnet_lab.spatial.writers import write_volume
from regnet_lab.training.module import RegistrationModule
from regnet_lab.types import Pair
from regnet_lab.utils.atomic_io import write_figure, write_text
from regnet_lab.visualization import panels

Register = Callable[[Tensor], list[Tensor]]

FOREGROUND = 0.01  # of the plain mean, where there are no labels

ROUND = "round %d: the template changed by %.4f; the mean displacement was %.3f voxels"

log = logging.getLogger(__name__)


class Atlas:
    """Average the images in a common shape, and their labels by vote.

    A template, at first the plain mean of the images, is registered to each of them; their mean in
    its shape is the next template, until it hardly changes.  The labels carried to the last one
    vote in every voxel; how well the votes of all others label a subject is its leave-one-out Dice,
    told beside that of a vote without registration.  (Its image is in the template, its labels
    are not in the vote.)

    Args:
        folder: Gets ``mean.nii.gz``, ``template.nii.gz``, ``atlas.json`` and ``atlas.png``; where
            there are labels also ``labels.nii.gz`` (winning values), ``max_probability.nii.gz``
            (their share of the votes), ``probabilities.nii.gz`` (a channel for each value that
            ``atlas.json`` lists) and the tables of the leave-one-out Dice.
        epsilon: Stop when |new - old|, averaged over all voxels, is not above this.
        rounds: Stop after so many.
        unbiased: Remove the mean displacement from the template in every round.

    Raises:
        UserError: ``epsilon`` is negative, or there is no round.
    """

    def __init__(
        self, folder: str, epsilon: float = 0.01, rounds: int = 10, unbiased: bool = True
    ) -> None:
        if epsilon < 0 or rounds < 1:
            raise UserError(
                f"task.epsilon={epsilon} must not be negative and task.rounds={rounds} at least 1."
            )
        self.folder, self.epsilon = Path(folder), epsilon
        self.rounds, self.unbiased = rounds, unbiased

    def run(self, trainer: Trainer, module: RegistrationModule, data: DataLoader[Pair]) -> None:
        """Make it.

        Raises:
            UserError: The split has only one image, or images on several grids.
        """
        subjects = population(data.dataset)
        register = registrar(trainer, module, subjects)
        mean = plain_mean(subjects)
        self.write("mean", mean, subjects)
        with torch.no_grad():
            image, facts = self.averaged(mean, register, subjects)
            fields = register(image)
            ballot = hold(subjects, fields)
            facts |= self.voted(ballot, fields, subjects, module.name) if ballot else {}
        inside = ballot.inside if ballot else mean > FOREGROUND
        facts |= sharpness(mean, image, inside, subjects)
        facts = {"model": module.name, "subjects": subjects.names} | facts
        write_text(self.folder / "atlas.json", json.dumps(facts, indent=2))
        heading = f"atlas of {len(subjects)} images by {module.name}\n{sentence(facts)}"
        votes = (array(ballot.winners), array(ballot.share)) if ballot else ()
        spacing = subjects.spacing[0].tolist()
        picture = panels.atlas(heading, array(mean), array(image), spacing, *votes)
        write_figure(self.folder / "atlas.png", picture)
        Console().print(heading, markup=False, highlight=False, soft_wrap=True)

    def averaged(
        self, image: Tensor, register: Register, subjects: Population
    ) -> tuple[Tensor, dict[str, Any]]:
        """The template the rounds lead to from an image, and how they went."""
        changes: list[float] = []
        while len(changes) < self.rounds and (not changes or changes[-1] > self.epsilon):
            fields = register(image)
            shift = float(torch.stack(fields).mean(0).norm(dim=1).mean())
            fields = atlas_functional.recentred(fields) if self.unbiased else fields
            new = atlas_functional.weighted_mean(
                zip((s.image for s in subjects), fields, strict=True)
            )
            changes.append(float((new - image).abs().mean()))
            image = new
            self.write("template", image, subjects)
            log.info(ROUND, len(changes), changes[-1], shift)
        if changes[-1] > self.epsilon:
            log.warning("task.rounds=%d were too few for task.epsilon", self.rounds)
        return image, {
            "changes": changes,
            "epsilon": self.epsilon,
            "unbiased": self.unbiased,
            "mean_displacement_vox": shift,
        }

    def voted(
        self, ballot: Ballot, fields: list[Tensor], subjects: Population, name: str
    ) -> dict[str, Any]:
        """Write what the vote gave, and judge it."""
        self.write("labels", ballot.winners.short(), subjects)
        self.write("max_probability", ballot.share, subjects)
        self.write("probabilities", ballot.probabilities, subjects)
        records, residual = leave_one_out(ballot, subjects, fields, name)
        tables.write(records, self.folder)
        summary = tables.summary(records)
        Console().print(tables.rich_table(summary))
        return {
            "labels": ballot.values,
            "leave_one_out": tables.as_dict(summary),
            "inverse_residual_vox": residual,
        }

    def write(self, name: str, tensor: Tensor, subjects: Population) -> None:
        """One channel as (*spatial), more as (x, y, z, channels)."""
        values = array(tensor)
        if tensor.shape[1] > 1:
            values = values.reshape(len(values), *(*tensor.shape[2:], 1)[:3])
            values = values.transpose(1, 2, 3, 0)
        write_volume(self.folder / f"{name}.nii.gz", values, subjects.affine)


def registrar(trainer: Trainer, module: RegistrationModule, subjects: Population) -> Register:
    """``register(template)`` gives u (1, D, *spatial) to every subject, in voxels, on the host."""
    device = trainer.strategy.root_device
    module.to(device).eval()

    def to(subject: Subject, fixed: Tensor) -> Tensor:
        moving, spacing = subject.image.to(device), subjects.spacing.to(device)
        pair = Pair(fixed=fixed, moving=moving, spacing=spacing, name=[subject.name])
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            return module(pair).displacement.float().cpu()

    def register(image: Tensor) -> list[Tensor]:
        return [to(subject, image.to(device)) for subject in subjects]

    return register


def plain_mean(subjects: Population) -> Tensor:
    """(1, 1, *spatial) mean of the images as they are."""
    total = torch.zeros_like(subjects[0].image)
    for subject in subjects:
        total += subject.image
    return total / len(subjects)


def sharpness(mean: Tensor, image: Tensor, inside: Tensor, subjects: Population) -> dict[str, Any]:
    """Sharpness of the plain mean, the template and, on average, the images, per mm; None where
    nothing is inside.
    """

    def of(one: Tensor) -> float:
        return atlas_functional.sharpness(one, inside, subjects.spacing)

    if not inside.any():
        return {"sharpness_per_mm": None, "sharper_percent": None}
    single = sum(of(subject.image) for subject in subjects) / len(subjects)
    values = {"mean": of(mean), "template": of(image), "single_image": single}
    percent = 100 * (values["template"] / values["mean"] - 1) if values["mean"] else None
    return {"sharpness_per_mm": values, "sharper_percent": percent}


def sentence(facts: dict[str, Any]) -> str:
    """What was measured, in words."""
    rounds = len(facts["changes"])
    told = f"{rounds} round{'s' if rounds > 1 else ''}"
    if facts["sharper_percent"] is not None:
        more = "sharper" if facts["sharper_percent"] >= 0 else "less sharp"
        told += f", {abs(facts['sharper_percent']):.1f} % {more} than the plain mean"
    for method, numbers in facts.get("leave_one_out", {}).items():
        if method == facts["model"]:
            told += f", leave-one-out Dice {numbers['dice']['mean']:.3f}"
    return told
