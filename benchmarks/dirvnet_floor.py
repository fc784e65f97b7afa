"""The least endpoint error that any method can have on DIRV-Net's chessboards.

python benchmarks/dirvnet_floor.py [--pairs 20] [--runs <folder> ...] [--data <override> ...]

A board is flat but for its edges.  Where a voxel of the fixed image shows a mixture of two cells,
its grey level tells how far x + u(x) lies across the edge and nothing about how far along it;
elsewhere it tells no more than the cell.  So of u are known, exactly, the components

    n(x) . u(x),  n = g / |g|,  g = grad moving at x + u(x), wherever g is not zero,

and the rest only as far as u is smooth.  How smooth is known too: u is the affine field, D (D + 1)
numbers, plus white noise on a grid of seeds, smoothed and stretched, a sum of many small
independent parts; the covariance of both follows from the generator.  Given the components, u(x)
is normal with the mean and covariance of Gaussian process regression.  No guess is better than the
mean, and what it misses by on average, E |e|, follows from the covariance alone.

Every pair is looked at twice: ``exact``, with g of the linearly interpolated image, and
``generous``, with central differences, which grants the component to voxels next to an edge that
show nothing of it.  ``exact`` leaves out what the cell tells, ``generous`` is well on the safe
side.  Both are given what no method sees: the direction n and the size of the non-rigid part.

``expected`` is E |e|, ``found`` what the mean really misses by, ``inside`` eight voxels and more
from the border (there ``long`` where |u| is four voxels or more, else ``short``), ``seen`` what a
run misses n . u by where it is known exactly.  The formulas are compared with others before they
are used.  In 3D a thousand voxels of each pair are looked at, ``exact`` alone.
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
from regnet_lab.config.compose import CONF
from regnet_lab.config.instantiate import build
from regnet_lab.config.run_dir import kept
from regnet_lab.data.synthesis.displacements.affine_nonrigid import NonRigid
from regnet_lab.ops.bspline import ControlGrid
from regnet_lab.training.module import RegistrationModule

LONG = 4  # voxels, half a cell
JUDGED = 5000  # voxels: of larger images a fifth as many, drawn
SOLVED = 14_000  # most components that a dense matrix is solved for


class Remembered:
    """A generator that keeps its last field."""

    def __init__(self, generator: NonRigid) -> None:
        self.generator = generator

    def __call__(self, *args: Any) -> Tensor:
        self.last = self.generator(*args)
        return self.last


def slope_exact(moving: Tensor, u: Tensor) -> Tensor:
    """(1, D, *shape) gradient of the interpolated image at x + u, zero beyond its border."""
    with torch.enable_grad():
        at = u.double().requires_grad_()
        (slope,) = torch.autograd.grad(ops.warp(moving.double(), at).sum(), at)
    return slope


def slope_generous(moving: Tensor, u: Tensor) -> Tensor:
    """The same of central differences, which reach a voxel further."""
    return ops.warp(ops.gradient(moving)[:, 0], u).double()


def flat(field: Tensor) -> np.ndarray:
    """(1, D, *shape) as (P, D)."""
    return field[0].flatten(1).T.double().numpy()


def normals(slope: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Voxels where the slope (1, D, *shape) is not zero, and its direction there."""
    g = flat(slope)
    length = np.linalg.norm(g, axis=1)
    p = np.flatnonzero(length > 1e-6)
    return p, g[p] / length[p, None]


def averages(name: str, errors: np.ndarray, inside: np.ndarray) -> dict[str, float]:
    """Mean error of all voxels and of those inside."""
    return {name: errors.mean(), f"{name} inside": errors[inside].mean()}


def floor(name: str, prior: Prior, size: float, slope: Tensor, u: Tensor) -> dict[str, float]:
    """Expected and found error of the best guess at a field u (1, D, *shape)."""
    (p, n), truth, at = normals(slope), flat(u), np.arange(u[0, 0].numel())
    if len(p) > SOLVED:
        return {f"{name} known": len(p)}
    if len(at) > JUDGED:
        at = np.random.default_rng(0).permutation(at)[: JUDGED // 5]
    mean, sigma = posterior(prior, size, p, n, (n * truth[p]).sum(1), at)
    found = np.linalg.norm(mean - truth[at], axis=1)
    return (
        {f"{name} known": len(p)}
        | averages(f"{name} expected", expected_length(sigma), prior.inside[at])
        | averages(f"{name} found", found, prior.inside[at])
    )


def reached(
    name: str, off: np.ndarray, truth: np.ndarray, prior: Prior, slope: Tensor
) -> dict[str, float]:
    """The same of a run that is off by so much, of its share that the image shows, and by |u|."""
    p, n = normals(slope)
    error, length = np.linalg.norm(off, axis=1), np.linalg.norm(truth, axis=1)
    long = prior.inside & (length >= LONG)
    return averages(name, error, prior.inside) | {
        f"{name} seen": np.abs((n * off[p]).sum(1)).mean(),
        f"{name} inside, short": error[prior.inside & ~long].mean(),
        f"{name} inside, long": error[long].mean() if long.any() else np.nan,
    }


def trained(run: str) -> RegistrationModule:
    """The best of a run, as evaluate.py judges it."""
    module = build(kept(run).module)
    load_weights(module, Path(run) / "checkpoints/best.ckpt")
    return module.eval()


def main() -> None:
    """Table of all pairs and their mean."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--runs", nargs="*", default=[])
    parser.add_argument("--data", nargs="*", default=[], help="such as ndim=3")
    parser.add_argument("--out", type=Path, default=Path("outputs/dirvnet_floor"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    with initialize_config_dir(CONF, version_base="1.3"):
        cfg = compose("train", ["data=chessboard", *given.data])
    pairs = build(cfg.data).pairs("test")
    sums = pairs.fields.fields[0]
    checked(*sums.fields)
    modules = {Path(run).name: trained(run) for run in given.runs}
    sums.fields[1] = last = Remembered(sums.fields[1])
    shape = pairs[0]["displacement"].shape[1:]
    prior, grid = Prior(sums.fields[0], last.generator, shape), ControlGrid(shape, [4] * len(shape))
    rows = []
    for k in range(given.pairs):
        pair = default_collate([pairs[k]])
        u, moving, size = pair["displacement"], pair["moving"], last.last.abs().max().item()
        exact, generous = slope_exact(moving, u), slope_generous(moving, u)
        row = averages("identity", np.linalg.norm(flat(u), axis=1), prior.inside)
        off = flat(grid.dense(grid.fit(u)) - u)
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
    given.out.mkdir(parents=True, exist_ok=True)
    table.to_csv(given.out / "pairs.csv", index_label="pair")
    print(table.mean().map("{:.4f}".format).to_string())


if __name__ == "__main__":
    main()
