"""Build an atlas (mean template and label probabilities) of the images of a split."""

import json
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Trainer
from rich.console import Console
from torch import Tensor
from torch.utils.data import DataLoader

from regnet_lab.data.datasets.unique_images import UniqueImages, collect_unique_images
from regnet_lab.data.io.labels import narrow_labels
from regnet_lab.errors import UserError
from regnet_lab.evaluation import atlas_functional, label_fusion
from regnet_lab.evaluation.label_fusion import LabelVotes, to_numpy
from regnet_lab.metrics import tables
from regnet_lab.spatial.writers import write_nifti
from regnet_lab.training.module import RegistrationModule
from regnet_lab.types import Pair
from regnet_lab.utils.atomic_io import write_figure, write_text
from regnet_lab.visualization import panels

RegisterTemplate = Callable[[Tensor], list[Tensor]]

FOREGROUND_THRESHOLD = 0.01  # intensity of the mean image, where there are no labels
ROUND_MESSAGE = "round %d: the template changed by %.4f; the mean displacement was %.3f voxels"
MAX_ROUNDS_MESSAGE = (
    "task.max_rounds=%d reached before task.tolerance: the template changed by %.4f"
)

log = logging.getLogger(__name__)


class AtlasTask:
    """Build a mean image in the mean shape of the subjects, and their labels by majority vote.

    The template, at first the mean of the unregistered images, is registered to each of them; the
    mean of the warped images is the next template, until it hardly changes.  The labels warped to
    the last template vote in every voxel.  The leave-one-out Dice tells how well the votes of all
    other subjects label a subject, with and without registration.  (The image of the subject is
    part of the template, its labels are not among the votes.)

    Args:
        folder: Folder for ``mean.nii.gz``, ``template.nii.gz``, ``atlas.json``, ``atlas.png`` and,
            where there are labels, ``labels.nii.gz`` (majority labels), ``max_probability.nii.gz``
            (their share of the votes), ``probabilities.nii.gz`` (a channel for each label that
            ``atlas.json`` lists) and the tables of the leave-one-out Dice.
        tolerance: Stop when |new - old template|, averaged over all voxels, is at most this.
        max_rounds: Stop after so many rounds.
        unbiased: Remove the mean displacement from the template in every round.
    """

    def __init__(
        self, folder: str, tolerance: float = 0.01, max_rounds: int = 10, unbiased: bool = True
    ) -> None:
        if tolerance < 0 or max_rounds < 1:
            raise UserError(
                f"task.tolerance={tolerance} must not be negative, and "
                f"task.max_rounds={max_rounds} must be at least 1."
            )
        self.folder, self.tolerance = Path(folder), tolerance
        self.max_rounds, self.unbiased = max_rounds, unbiased

    def run(self, trainer: Trainer, module: RegistrationModule, data: DataLoader[Pair]) -> None:
        """Build and write the atlas."""
        subjects = collect_unique_images(data.dataset)
        register = make_register_function(trainer, module, subjects)
        mean = compute_mean_image(subjects)
        self.write_tensor("mean", mean, subjects)
        with torch.no_grad():
            template, info = self.build_template(mean, register, subjects)
            fields = register(template)
            votes = label_fusion.count_votes(subjects, fields)
            info |= self.write_label_votes(votes, fields, subjects, module.name) if votes else {}
        mask = votes.foreground if votes else mean > FOREGROUND_THRESHOLD
        info |= compare_sharpness(mean, template, mask, subjects)
        info = {"model": module.name, "subjects": subjects.names} | info
        write_text(self.folder / "atlas.json", json.dumps(info, indent=2))
        heading = f"atlas of {len(subjects)} images by {module.name}\n{format_summary(info)}"
        label_maps = (votes.majority_labels, votes.max_probability) if votes else ()
        spacing = subjects.spacing[0].tolist()
        figure = panels.draw_atlas(
            heading, to_numpy(mean), to_numpy(template), spacing, *map(to_numpy, label_maps)
        )
        write_figure(self.folder / "atlas.png", figure)
        Console().print(heading, markup=False, highlight=False, soft_wrap=True)

    def build_template(
        self, template: Tensor, register: RegisterTemplate, subjects: UniqueImages
    ) -> tuple[Tensor, dict[str, Any]]:
        """Iterate from an initial template; return the last one and how the rounds went."""
        changes: list[float] = []
        while len(changes) < self.max_rounds and (not changes or changes[-1] > self.tolerance):
            fields = register(template)
            mean_displacement = float(torch.stack(fields).mean(0).norm(dim=1).mean())
            fields = atlas_functional.recenter_displacements(fields) if self.unbiased else fields
            images = (subject.image for subject in subjects)
            new_template = atlas_functional.compute_weighted_mean(zip(images, fields, strict=True))
            changes.append(float((new_template - template).abs().mean()))
            template = new_template
            self.write_tensor("template", template, subjects)
            log.info(ROUND_MESSAGE, len(changes), changes[-1], mean_displacement)
        if changes[-1] > self.tolerance:
            log.warning(MAX_ROUNDS_MESSAGE, self.max_rounds, changes[-1])
        return template, {
            "changes": changes,
            "tolerance": self.tolerance,
            "unbiased": self.unbiased,
            "mean_displacement_vox": mean_displacement,
        }

    def write_label_votes(
        self, votes: LabelVotes, fields: list[Tensor], subjects: UniqueImages, name: str
    ) -> dict[str, Any]:
        """Write the labels of the atlas and their leave-one-out scores; return the scores."""
        self.write_tensor("labels", votes.majority_labels, subjects)
        self.write_tensor("max_probability", votes.max_probability, subjects)
        self.write_tensor("probabilities", votes.probabilities, subjects)
        records, residual = label_fusion.score_leave_one_out(votes, subjects, fields, name)
        tables.write_tables(records, self.folder)
        summary = tables.summarize(records)
        Console().print(tables.summary_to_rich(summary))
        return {
            "labels": votes.values,
            "leave_one_out": tables.summary_to_dict(summary),
            "inverse_residual_vox": residual,
        }

    def write_tensor(self, name: str, tensor: Tensor, subjects: UniqueImages) -> None:
        """Write a batch of one as NIfTI: (*spatial), or (x, y, z, channels) if several."""
        values = to_numpy(tensor)
        if not tensor.is_floating_point():
            values = narrow_labels(values)
        if tensor.shape[1] > 1:
            values = values.reshape(len(values), *(*tensor.shape[2:], 1)[:3])
            values = values.transpose(1, 2, 3, 0)
        write_nifti(self.folder / f"{name}.nii.gz", values, subjects.affine)


def make_register_function(
    trainer: Trainer, module: RegistrationModule, subjects: UniqueImages
) -> RegisterTemplate:
    """Return a function that registers a template to every subject.

    It returns u (1, D, *spatial) of each subject, in voxels, on the CPU.
    """
    device = trainer.strategy.root_device
    module.to(device).eval()

    def register(template: Tensor) -> list[Tensor]:
        fields, fixed, spacing = [], template.to(device), subjects.spacing.to(device)
        for subject in subjects:
            moving = subject.image.to(device)
            pair = Pair(fixed=fixed, moving=moving, spacing=spacing, name=[subject.name])
            with torch.no_grad(), trainer.precision_plugin.forward_context():
                fields.append(module(pair).displacement.float().cpu())
        return fields

    return register


def compute_mean_image(subjects: UniqueImages) -> Tensor:
    """Compute the (1, 1, *spatial) mean of the unregistered images."""
    total = torch.zeros_like(subjects[0].image)
    for subject in subjects:
        total += subject.image
    return total / len(subjects)


def compare_sharpness(
    mean: Tensor, template: Tensor, mask: Tensor, subjects: UniqueImages
) -> dict[str, Any]:
    """Compute the sharpness per mm of the unregistered mean, the template and the subjects.

    It is None where the mask is empty.
    """
    if not mask.any():
        return {"sharpness_per_mm": None, "sharper_percent": None}
    compute = partial(atlas_functional.compute_sharpness, mask=mask, spacing=subjects.spacing)
    sharpness = {
        "mean": compute(mean),
        "template": compute(template),
        "single_image": sum(compute(subject.image) for subject in subjects) / len(subjects),
    }
    gain = 100 * (sharpness["template"] / sharpness["mean"] - 1) if sharpness["mean"] else None
    return {"sharpness_per_mm": sharpness, "sharper_percent": gain}


def format_summary(info: dict[str, Any]) -> str:
    """Summarize rounds, sharpness and leave-one-out Dice in a sentence."""
    rounds = len(info["changes"])
    summary = f"{rounds} round{'s' if rounds > 1 else ''}"
    if info["sharper_percent"] is not None:
        comparison = "sharper" if info["sharper_percent"] >= 0 else "less sharp"
        summary += f", {abs(info['sharper_percent']):.1f} % {comparison} than the plain mean"
    if numbers := info.get("leave_one_out", {}).get(info["model"]):
        summary += f", leave-one-out Dice {numbers['dice']['mean']:.3f}"
    return summary
