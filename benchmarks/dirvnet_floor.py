"""The smallest endpoint error any method can reach on DIRV-Net's chessboards.

python benchmarks/dirvnet_floor.py [--pairs 20] [--runs <folder> ...] [--data <override> ...]

A board is constant except at its edges.  Where a voxel of the fixed image mixes two cells, its grey
level determines how far x + u(x) lies across the edge, but not along it; elsewhere it determines
only the cell.  So exactly these components of u are known,

    n(x) . u(x),  n = g / |g|,  g = grad moving at x + u(x), where g is not zero,

and the rest only as far as u is smooth.  The smoothness is known: u is an affine field of D (D + 1)
numbers plus white noise on a coarse grid, smoothed and resized, a sum of many independent parts;
the covariance of both follows from the generator.  Given the components, u(x) is normal with the
mean and covariance of Gaussian process regression.  No estimate is better than the mean, and its
expected error E |e| follows from the covariance.

Every pair is evaluated twice: ``exact``, with g of the linearly interpolated image, and
``generous``, with central differences, which also counts voxels next to an edge that do not show
it.  ``exact`` ignores what the cell tells; ``generous`` is on the safe side.  Both use what no
method knows: the direction n and the size of the non-rigid part.

Columns: ``expected`` is E |e|, ``found`` the error of the mean, ``inside`` voxels at least eight
voxels from the border (there ``long`` where |u| >= 4 voxels, else ``short``), ``seen`` a run's
error of n . u where it is known exactly.  The formulas are checked against others before use.  In
3D a thousand voxels of each pair are used, with ``exact`` only.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from hydra import compose, initialize_config_dir
from known_components import Prior, checked, expected_length, posterior
from torch import Tensor
from torch.utils.data import default_collate

from regnet_lab import ops
from regnet_lab.config.checkpoints import load_weights
from regnet_lab.config.compose import CONFIG_DIR
from regnet_lab.config.instantiate import instantiate_config
from regnet_lab.config.run_dir import load_run_config
from regnet_lab.data.synthesis.displacements.affine_nonrigid import NonRigid
from regnet_lab.ops.bspline import ControlPointGrid
from regnet_lab.training.module import RegistrationModule

LONG = 4  # voxels, half a cell
JUDGED = 5000  # voxels: of larger images a fifth as many, drawn
SOLVED = 14_000  # most components that a dense matrix is solved for


class Remembered:
    """A generator that stores its last field."""

    def __init__(self, generator: NonRigid) -> None:
        self.generator = generator

    def __call__(self, *args: Any) -> Tensor:
        self.last = self.generator(*args)
        return self.last


def slope_exact(moving: Tensor, u: Tensor) -> Tensor:
    """Return the gradient (1, D, *shape) of the interpolated image at x + u, zero outside."""
    with torch.enable_grad():
        at = u.double().requires_grad_()
        (slope,) = torch.autograd.grad(ops.warp(moving.double(), at).sum(), at)
    return slope


def slope_generous(moving: Tensor, u: Tensor) -> Tensor:
    """Return the same by central differences, which reach one voxel further."""
    return ops.warp(ops.gradient(moving)[:, 0], u).double()


def flat(field: Tensor) -> np.ndarray:
    """Reshape (1, D, *shape) to (P, D)."""
    return field[0].flatten(1).T.double().numpy()


def normals(slope: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return the voxels with nonzero slope (1, D, *shape), and its direction there."""
    g = flat(slope)
    length = np.linalg.norm(g, axis=1)
    p = np.flatnonzero(length > 1e-6)
    return p, g[p] / length[p, None]


def averages(name: str, errors: np.ndarray, inside: np.ndarray) -> dict[str, float]:
    """Return the mean error of all voxels and of those inside."""
    return {name: errors.mean(), f"{name} inside": errors[inside].mean()}


def floor(name: str, prior: Prior, size: float, slope: Tensor, u: Tensor) -> dict[str, float]:
    """Return expected and found error of the best estimate of a field u (1, D, *shape)."""
    (p, n), truth, at = normals(slope), flat(u), np.arange(u[0, 0].numel())
    if len(p) > SOLVED:
        return {f"{name} known": len(p)}
    if len(at) > JUDGED:
        at = np.random.default_rng(0).permutation(at)[: JUDGED // 5]
    mean, sigma = posterior(prior, size, p, n, (n * truth[p]).sum(1), at)
    error = np.linalg.norm(mean - truth[at], axis=1)
    return (
        {f"{name} known": len(p)}
        | averages(f"{name} expected", expected_length(sigma), prior.inside[at])
        | averages(f"{name} found", error, prior.inside[at])
    )


def reached(
    name: str, off: np.ndarray, truth: np.ndarray, prior: Prior, slope: Tensor
) -> dict[str, float]:
    """Return the same for a run: its error, the visible part of it, and by |u|."""
    p, n = normals(slope)
    error, length = np.linalg.norm(off, axis=1), np.linalg.norm(truth, axis=1)
    long = prior.inside & (length >= LONG)
    return averages(name, error, prior.inside) | {
        f"{name} seen": np.abs((n * off[p]).sum(1)).mean(),
        f"{name} inside, short": error[prior.inside & ~long].mean(),
        f"{name} inside, long": error[long].mean() if long.any() else np.nan,
    }


def trained(run: str) -> RegistrationModule:
    """Load the best checkpoint of a run as evaluate.py does."""
    module = instantiate_config(load_run_config(run).module)
    load_weights(module, Path(run) / "checkpoints/best.ckpt")
    return module.eval()


def main() -> None:
    """Print the table of all pairs and their mean."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--runs", nargs="*", default=[])
    parser.add_argument("--data", nargs="*", default=[], help="such as ndim=3")
    parser.add_argument("--output", type=Path, default=Path("outputs/dirvnet_floor"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with initialize_config_dir(CONFIG_DIR, version_base="1.3"):
        cfg = compose("train", ["data=chessboard", *arguments.data])
    pairs = instantiate_config(cfg.data).make_dataset("test")
    sums = pairs.fields.fields[0]
    checked(*sums.fields)
    modules = {Path(run).name: trained(run) for run in arguments.runs}
    sums.fields[1] = last = Remembered(sums.fields[1])
    shape = pairs[0]["displacement"].shape[1:]
    prior, grid = (
        Prior(sums.fields[0], last.generator, shape),
        ControlPointGrid(shape, [4] * len(shape)),
    )
    rows = []
    for k in range(arguments.pairs):
        pair = default_collate([pairs[k]])
        u, moving, size = pair["displacement"], pair["moving"], last.last.abs().max().item()
        exact, generous = slope_exact(moving, u), slope_generous(moving, u)
        row = averages("identity", np.linalg.norm(flat(u), axis=1), prior.inside)
        off = flat(grid.evaluate(grid.fit(u)) - u)
        row |= averages("control points", np.linalg.norm(off, axis=1), prior.inside)
        row |= floor("exact", prior, size, exact, u)
        row |= floor("generous", prior, size, generous, u)
        for name, module in modules.items():
            with torch.no_grad():
                off = flat(module(pair).displacement - u)
            row |= reached(name, off, flat(u), prior, exact)
        rows.append(row)
        print(k, *(f"{key} {value:.4g}" for key, value in row.items()), sep=", ", flush=True)
    table = pd.DataFrame(rows)
    arguments.output.mkdir(parents=True, exist_ok=True)
    table.to_csv(arguments.output / "pairs.csv", index_label="pair")
    print(table.mean().map("{:.4f}".format).to_string())


if __name__ == "__main__":
    main()
