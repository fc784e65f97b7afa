"""All picture groups of DIRV-Net: a batch, every unit, what is inside the model, how it trained."""

from collections.abc import Mapping, Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.data import Dataset, default_collate

from regnet_lab.errors import UserError
from regnet_lab.types import Pair, Registration
from regnet_lab.visualization import dirvnet_experts, dirvnet_images


def preview(pairs: Dataset[Pair], cases: int) -> Pair:
    """The first ``cases`` pairs as a batch, the same ones whenever it is asked for.

    Raises:
        UserError: They differ in size or in what they offer.
    """
    chosen = [pairs[k] for k in range(min(cases, len(pairs)))]  # type: ignore[arg-type]
    try:
        return default_collate(chosen)
    except (RuntimeError, KeyError) as error:
        raise UserError(
            "The pairs to be shown cannot be put beside each other, as they differ in size or in "
            "what they offer: show one only, cases=1."
        ) from error


def of_batch(pair: Pair, out: Registration) -> dict[str, Figure]:
    """What the model makes of a batch; for any model."""
    return {
        "images": dirvnet_images.images(pair, out),
        "displacements": dirvnet_images.displacements(pair, out),
        "vectors": dirvnet_images.vectors(pair, out),
        "unit_images": dirvnet_images.unit_images(pair, out),
        "unit_displacements": dirvnet_images.unit_displacements(pair, out),
    }


def of_model(model: nn.Module) -> dict[str, Figure]:
    """What the fields of experts of a model learned; nothing if it has none."""
    if not dirvnet_experts.levels(model):
        return {}
    pages = {"weights": dirvnet_experts.weight_histograms(model)}
    for term in dirvnet_experts.TERMS:
        pages[f"{term}_filters"] = dirvnet_experts.filters(model, term)
        pages[f"{term}_activations"] = dirvnet_experts.functions(model, term, integrated=False)
        pages[f"{term}_potentials"] = dirvnet_experts.functions(model, term, integrated=True)
    return pages


def of_training(
    slopes: Mapping[str, Tensor], history: Sequence[Mapping[str, float]]
) -> dict[str, Figure]:
    """Gradients of the last step and the errors of every level; nothing of what is empty."""
    pages = {}
    if slopes:
        pages["smallest_gradients"] = dirvnet_experts.gradient_histograms(slopes)
    if history:
        pages["level_losses"] = dirvnet_experts.level_losses(history)
    return pages


def answer(module: nn.Module, pair: Pair) -> Registration:
    """The module's registration, as at evaluation and without a graph."""
    training = module.training
    module.eval()
    with torch.no_grad():
        out = module(pair)
    module.train(training)
    return out
