"""Pictures of what a variational network learned: its filters, functions and how they train.

Everything is found by type, so any model that holds fields of experts can be shown, wrapped or not.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from regnet_lab.models.dirvnet import Level
from regnet_lab.models.field_of_experts import FieldOfExperts
from regnet_lab.visualization.dirvnet_images import canvas
from regnet_lab.visualization.layout import symmetric
from regnet_lab.visualization.slices import Array

FINE = 200  # points of a curve
MOST_FILTERS = 24
TERMS = ("data", "regularisers")
LINES = ("step sizes", "momentum")  # few numbers, shown unit by unit

Groups = Mapping[str, Tensor]


def levels(model: nn.Module) -> list[Level]:
    """The pyramid levels of a model, coarse to fine."""
    return [part for part in model.modules() if isinstance(part, Level)]


def last_experts(model: nn.Module, term: str) -> list[FieldOfExperts]:
    """Of each level's last unit: ``data`` or ``regularisers``."""
    return [getattr(level, term)[-1] for level in levels(model)]


def learned_functions(expert: FieldOfExperts) -> tuple[Array, Array, Array]:
    """Activations phi and potentials rho of the first channel's filters, on their region.

    Returns:
        x (n,), phi (F, n), and rho (F, n), the integral of phi by the trapezoidal rule, least 0.
    """
    count = len(expert.kernels) // expert.channels
    low, high = expert.activation.region
    device = expert.kernels.device
    x = torch.linspace(low, high, FINE, device=device)
    with torch.no_grad():
        all_of_them = x.expand(1, len(expert.kernels), FINE)
        phi = expert.activation(all_of_them)[0, :count].cpu()
    rho = torch.cumulative_trapezoid(phi, x.cpu())
    rho = torch.cat([torch.zeros(count, 1), rho], 1)
    return x.cpu().numpy(), phi.numpy(), (rho - rho.amin(1, keepdim=True)).numpy()


def functions(model: nn.Module, term: str, integrated: bool) -> Figure:
    """Activations, or potentials if ``integrated``, of the last unit of every level.

    A line for each filter of the first channel.
    """
    experts = last_experts(model, term)
    figure = canvas(4 * len(experts), 3.2)
    figure.suptitle(f"{term}: {'potentials' if integrated else 'activations'}", fontsize=10)
    for number, (axes, expert) in enumerate(
        zip(figure.subplots(1, len(experts), squeeze=False)[0], experts, strict=True), 1
    ):
        x, phi, rho = learned_functions(expert)
        axes.plot(x, (rho if integrated else phi).T, linewidth=0.8)
        axes.set_title(f"level {number}, last unit", fontsize=8)
        axes.grid(alpha=0.3)
    return figure


def filters(model: nn.Module, term: str) -> Figure:
    """Filters of the last unit of every level, a row for each level and channel; of filters of
    volumes the middle plane.
    """
    rows: list[tuple[str, Array]] = []
    for number, expert in enumerate(last_experts(model, term), 1):
        kernels = expert.kernels.detach().cpu()[:, 0]
        while kernels.ndim > 3:
            kernels = kernels.select(-1, kernels.shape[-1] // 2)
        for channel, part in enumerate(kernels.chunk(expert.channels)):
            rows.append((f"level {number}\nchannel {channel}", part[:MOST_FILTERS].numpy()))
    columns = max(len(part) for _, part in rows)
    figure = canvas(0.6 * columns + 0.8, 0.65 * len(rows) + 0.6)
    figure.suptitle(f"{term}: filters, each row on one scale", fontsize=10)
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes_row, (name, shown) in zip(grid, rows, strict=True):
        low, high = symmetric(shown)
        for axes, kernel in zip(axes_row, shown, strict=True):
            axes.imshow(kernel.T, "gray", vmin=low, vmax=high, origin="lower")
            axes.set(xticks=[], yticks=[])
        axes_row[0].set_ylabel(name, fontsize=6)
    return figure


def by_kind(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """The parameters of all levels: filters and activations of both terms, step sizes, momentum."""
    kinds = {"steps": "step sizes", "momentum": "momentum"}
    found: dict[str, list[nn.Parameter]] = {}
    for level in levels(model):
        for name, parameter in level.named_parameters():
            part, _, what = name.partition(".")
            learned = "filters" if what.endswith("kernels") else "activations"
            found.setdefault(kinds.get(part, f"{part}: {learned}"), []).append(parameter)
    return found


def weights(model: nn.Module) -> dict[str, Tensor]:
    """All learned numbers by kind, on the host."""
    found = by_kind(model).items()
    return {kind: torch.cat([p.detach().flatten().cpu() for p in some]) for kind, some in found}


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Their gradients after a backward pass, likewise; zero where there is none."""
    found = by_kind(model).items()
    slopes = {
        kind: [torch.zeros_like(p) if p.grad is None else p.grad for p in some]
        for kind, some in found
    }
    return {kind: torch.cat([g.flatten().cpu() for g in some]) for kind, some in slopes.items()}


def smallest(values: Tensor, share: float = 0.75) -> Tensor:
    """The ``share`` of the values that is nearest to zero."""
    kept = max(1, round(share * values.numel()))
    return values[values.abs().argsort()[:kept]]


def histograms(heading: str, groups: Groups) -> Figure:
    """A histogram for each group; step sizes and momentum as lines over the units."""
    figure = canvas(3.6 * 3, 2.6 * -(-len(groups) // 3) + 0.4)
    figure.suptitle(heading, fontsize=10)
    grid = figure.subplots(-(-len(groups) // 3), 3, squeeze=False).flatten()
    for axes in grid[len(groups) :]:
        axes.set_axis_off()
    for axes, (name, values) in zip(grid, groups.items(), strict=False):
        if name in LINES:
            axes.plot(range(1, len(values) + 1), values, marker="o", markersize=3)
            axes.set_xlabel("unit, level after level", fontsize=7)
        else:
            axes.hist(values.numpy(), bins=100, alpha=0.6)
        axes.set_title(f"{name} ({len(values)})", fontsize=8)
        axes.tick_params(labelsize=6)
    return figure


def weight_histograms(model: nn.Module) -> Figure:
    """Everything learned."""
    return histograms("Weights", weights(model))


def gradient_histograms(slopes: Groups, share: float = 0.75) -> Figure:
    """The smallest gradients of every kind of weight, where training stalls first."""
    small = {
        name: values if name in LINES else smallest(values, share)
        for name, values in slopes.items()
    }
    return histograms(f"The {100 * share:.0f} % smallest gradients", small)


def level_losses(history: Sequence[Mapping[str, float]]) -> Figure:
    """Errors of every level over training, and their mean over the levels.

    Args:
        history: Rows of :func:`regnet_lab.visualization.dirvnet_images.level_errors` with a ``step`` each.
    """
    frame = pd.DataFrame(history)
    shown = [name for name in ("epe_vox", "mae") if name in frame]
    figure = canvas(8, 2.6 * len(shown))
    for (apart, mean), name in zip(
        figure.subplots(len(shown), 2, squeeze=False), shown, strict=True
    ):
        for level, rows in frame.groupby("level"):
            apart.plot(rows["step"], rows[name], marker="o", markersize=2, label=f"level {level}")
        average = frame.groupby("step")[name].mean()
        mean.plot(average.index, average, marker="o", markersize=2)
        apart.set_ylabel(name)
        apart.legend(fontsize=7)
        for axes, title in ((apart, "every level"), (mean, "mean of the levels")):
            axes.set_title(title, fontsize=8)
            axes.set_xlabel("step", fontsize=8)
            axes.set_ylim(0, 1.05 * np.nanmax([*frame[name], 1e-9]))
            axes.grid(alpha=0.3)
    return figure
