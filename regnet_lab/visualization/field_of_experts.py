"""Figures of the learned parameters of DIRV-Net: filters, activations, weights and gradients.

The pyramid levels are found by type, so a wrapped model is drawn like a bare one.
"""

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from regnet_lab.models.dirvnet import PyramidLevel
from regnet_lab.models.field_of_experts import FieldOfExperts
from regnet_lab.visualization import layout
from regnet_lab.visualization.slices import Array

CURVE_POINTS = 200
MAX_FILTERS = 24
TERMS = ("data", "regularisers")  # attributes of a level, also names of figures
PER_UNIT = {"steps": "step sizes", "momentum": "momentum"}  # a number per unit: plotted as a line
SMALLEST_SHARE = 0.75  # of the gradients is shown


def find_levels(model: nn.Module) -> list[PyramidLevel]:
    """Return the pyramid levels of a model, coarse to fine."""
    return [module for module in model.modules() if isinstance(module, PyramidLevel)]


def get_last_experts(model: nn.Module, term: str) -> list[FieldOfExperts]:
    """Return the field of experts of every level's last unit; ``term`` is one of ``TERMS``."""
    return [getattr(level, term)[-1] for level in find_levels(model)]


def evaluate_activations(expert: FieldOfExperts) -> tuple[Array, Array, Array]:
    """Evaluate activations and potentials of the first channel's F filters on their region.

    Returns:
        x (n,), activations phi (F, n), and potentials rho (F, n): the integral of phi by the
        trapezoidal rule, shifted to a minimum of 0.
    """
    count, total = len(expert.kernels) // expert.channels, len(expert.kernels)
    x = torch.linspace(*expert.activation.knot_range, CURVE_POINTS, device=expert.kernels.device)
    with torch.no_grad():
        phi = expert.activation(x.expand(1, total, CURVE_POINTS))[0, :count].cpu()
    rho = F.pad(torch.cumulative_trapezoid(phi, x.cpu()), (1, 0))
    return x.cpu().numpy(), phi.numpy(), (rho - rho.amin(1, keepdim=True)).numpy()


def plot_activations(model: nn.Module, term: str, integrated: bool) -> Figure:
    """Plot activations, or potentials if ``integrated``, of the last unit of every level.

    A line is a filter of the first channel.
    """
    experts = get_last_experts(model, term)
    heading = f"{term}: {'potentials' if integrated else 'activations'}"
    figure = layout.create_figure(4 * len(experts), 3.2, heading)
    grid = figure.subplots(1, len(experts), squeeze=False)[0]
    for number, (axes, expert) in enumerate(zip(grid, experts, strict=True), 1):
        x, phi, rho = evaluate_activations(expert)
        axes.plot(x, (rho if integrated else phi).T, linewidth=0.8)
        axes.set_title(f"level {number}, last unit", fontsize=8)
        axes.grid(alpha=0.3)
    return figure


def draw_filters(model: nn.Module, term: str) -> Figure:
    """Draw the filters of the last unit of every level, a row for each level and channel."""
    rows = []
    for number, expert in enumerate(get_last_experts(model, term), 1):
        kernels = expert.kernels.detach().cpu()[:, 0]
        if kernels.ndim == 4:  # of 3D filters the middle plane is shown
            kernels = kernels[..., kernels.shape[-1] // 2]
        for channel, filters in enumerate(kernels.chunk(expert.channels)):
            images, name = filters[:MAX_FILTERS].numpy(), f"level {number}\nchannel {channel}"
            rows.append(layout.ImageRow(name, images, layout.compute_symmetric_limits(images)))
    return layout.draw_image_rows(f"{term}: filters, each row on one scale", rows, cell=0.65)


def _collect(model: nn.Module, read: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """Read step sizes, momentum, filters and activations by term, flattened and on the CPU."""
    groups: dict[str, list[Tensor]] = {}
    for level in find_levels(model):
        for name, parameter in level.named_parameters():
            kind = "filters" if name.endswith("kernels") else "activations"
            term = name.partition(".")[0]
            values = groups.setdefault(PER_UNIT.get(term, f"{term}: {kind}"), [])
            values.append(read(parameter).flatten().cpu())
    return {name: torch.cat(values) for name, values in groups.items()}


def collect_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the values of the parameters of all levels by group."""
    return _collect(model, Tensor.detach)


def collect_gradients(model: nn.Module) -> dict[str, Tensor]:
    """Return the gradients like :func:`collect_weights`; zero where a parameter has none."""
    return _collect(model, lambda p: torch.zeros_like(p) if p.grad is None else p.grad)


def select_smallest(values: Tensor) -> Tensor:
    """Return the ``SMALLEST_SHARE`` of the values that is nearest to zero."""
    count = max(1, round(SMALLEST_SHARE * values.numel()))
    return values[values.abs().argsort()[:count]]


def plot_histograms(heading: str, groups: Mapping[str, Tensor]) -> Figure:
    """Plot a histogram of every group; step sizes and momentum as lines over the units."""
    rows = math.ceil(len(groups) / 3)
    figure = layout.create_figure(3.6 * 3, 2.6 * rows + 0.4, heading)
    grid = figure.subplots(rows, 3, squeeze=False).flatten()
    for axes in grid[len(groups) :]:
        axes.set_axis_off()
    for axes, (name, values) in zip(grid, groups.items(), strict=False):
        if name in PER_UNIT.values():
            axes.plot(range(1, len(values) + 1), values, marker="o", markersize=3)
            axes.set_xlabel("unit, level after level", fontsize=7)
        else:
            axes.hist(values.numpy(), bins=100, alpha=0.6)
        axes.set_title(f"{name} ({len(values)})", fontsize=8)
        axes.tick_params(labelsize=6)
    return figure


def plot_gradients(gradients: Mapping[str, Tensor]) -> Figure:
    """Plot the smallest gradients of every group, where training stalls first."""
    per_unit = PER_UNIT.values()
    smallest = {k: g if k in per_unit else select_smallest(g) for k, g in gradients.items()}
    return plot_histograms(f"The {100 * SMALLEST_SHARE:.0f} % smallest gradients", smallest)


def draw_parameters(model: nn.Module) -> dict[str, Figure]:
    """Draw weights, filters, activations and potentials; nothing for a model without levels."""
    if not find_levels(model):
        return {}
    figures = {"weights": plot_histograms("Weights", collect_weights(model))}
    for term in TERMS:
        figures[f"{term}_filters"] = draw_filters(model, term)
        figures[f"{term}_activations"] = plot_activations(model, term, integrated=False)
        figures[f"{term}_potentials"] = plot_activations(model, term, integrated=True)
    return figures
