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
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from hydra import compose, initialize_config_dir
from scipy.linalg import cho_factor, cho_solve, solve_triangular
from scipy.special import ellipe
from torch import Tensor
from torch.utils.data import default_collate

from regnet_lab import ops
from regnet_lab.build import build
from regnet_lab.cli import CONF, kept
from regnet_lab.data.smooth_fields import Affine, NonRigid
from regnet_lab.models.control_points import ControlGrid
from regnet_lab.module import RegistrationModule
from regnet_lab.weights import load_weights

EXACT = 1e-3  # voxels: deviation of a component that is called known
DRAWS = 2000
BORDER = 8  # voxels
LONG = 4  # voxels, half a cell
JUDGED = 5000  # voxels: of larger images a fifth as many, drawn
SOLVED = 14_000  # most components that a dense matrix is solved for
NORMAL = np.random.default_rng(2).normal(size=(2000, 3))


class Remembered:
    """A generator that keeps its last field."""

    def __init__(self, generator: NonRigid) -> None:
        self.generator = generator

    def __call__(self, *args) -> Tensor:  # type: ignore[no-untyped-def]
        self.last = self.generator(*args)
        return self.last


class Prior:
    """Mean zero and covariance of the fields: cov(u_d(x), u_e(y)).

    Non-rigid: [d = e] size^2 ratio prod_k C_k(x_k, y_k) with size its largest component and C_k the
    mean over the numbers of seeds of A A^T, A the smoothing along axis k, brought to mean diagonal
    1.  Affine: the covariance of its numbers, drawn often.
    """

    def __init__(self, affine: Affine, non_rigid: NonRigid, shape: Sequence[int]) -> None:
        rng, self.ndim = np.random.default_rng(0), len(shape)
        (fewest, most), spacing = non_rigid.seeds, [1.0] * self.ndim
        self.axes = []
        for n in shape:
            smooth = [non_rigid.axis(n, s).double().numpy() for s in range(fewest, most + 1)]
            c = np.mean([a @ a.T for a in smooth], 0)
            self.axes.append(c / c.diagonal().mean())
        drawn = [non_rigid(rng, shape, spacing) for _ in range(DRAWS // 10)]
        self.ratio = float(np.mean([v.pow(2).mean() / v.abs().max() ** 2 for v in drawn]))
        x = ops.identity_grid(shape, torch.zeros(1)).numpy()[0].reshape(self.ndim, -1).T
        self.x = x.astype(int)
        self.inside = np.minimum(self.x, self.x.max(0) - self.x).min(1) >= BORDER
        self.basis = np.c_[np.ones(len(x)), (x - (np.array(shape) - 1) / 2) / 32]  # (P, D + 1)
        numbers = [
            np.linalg.lstsq(self.basis, affine(rng, shape, spacing)[0].flatten(1).T.numpy())[0]
            for _ in range(DRAWS)
        ]
        self.affine = np.cov(np.array(numbers).transpose(0, 2, 1).reshape(DRAWS, -1).T)

    def smooth(self, p: np.ndarray, q: np.ndarray) -> np.ndarray:
        """(len(p), len(q)) of ratio prod_k C_k between voxels of these numbers."""
        whole = np.full((len(p), len(q)), self.ratio)
        for axis, (i, j) in zip(self.axes, zip(self.x[p].T, self.x[q].T, strict=True), strict=True):
            whole *= axis[np.ix_(i, j)]
        return whole

    def rigid(self, p: np.ndarray, n: np.ndarray) -> np.ndarray:
        """(len(p), D (D + 1)) n . u of the affine numbers, at voxels p."""
        return (n[:, :, None] * self.basis[p][:, None, :]).reshape(len(p), -1)

    def covariance(
        self, size: float, p: np.ndarray, n: np.ndarray, q: np.ndarray, m: np.ndarray
    ) -> np.ndarray:
        """(len(p), len(q)) cov(n . u at p, m . u at q)."""
        both = self.smooth(p, q)
        both *= n @ (size**2 * m.T)
        both += self.rigid(p, n) @ (self.affine @ self.rigid(q, m).T)
        return both


def posterior(
    prior: Prior, size: float, p: np.ndarray, n: np.ndarray, known: np.ndarray, at: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean (len(at), D) and covariance (len(at), D, D) of u, given n . u = known at voxels p."""
    axes = [np.tile(axis, (len(at), 1)) for axis in np.eye(prior.ndim)]
    inner = prior.covariance(size, p, n, p, n)
    inner.ravel()[:: len(p) + 1] += EXACT**2
    factor = cho_factor(inner, lower=True, overwrite_a=True, check_finite=False)
    across = [prior.covariance(size, p, n, at, axis) for axis in axes]
    mean = np.stack([c.T @ cho_solve(factor, known) for c in across], 1)
    rest = [solve_triangular(factor[0], c, lower=True) for c in across]
    smooth = size**2 * prior.ratio * np.ones(len(at))
    for axis, place in zip(prior.axes, prior.x[at].T, strict=True):
        smooth *= axis.diagonal()[place]
    rigid = [prior.rigid(at, axis) for axis in axes]
    sigma = np.empty((len(at), prior.ndim, prior.ndim))
    for d, e in np.ndindex(prior.ndim, prior.ndim):
        before = (rigid[d] @ prior.affine * rigid[e]).sum(1) + (d == e) * smooth
        sigma[:, d, e] = before - (rest[d] * rest[e]).sum(0)
    return mean, sigma


def expected_length(sigma: np.ndarray) -> np.ndarray:
    """E |e| of normal e with covariance (..., D, D), the mean of draws."""
    roots = np.sqrt(np.linalg.eigvalsh(sigma).clip(1e-16))
    squares = NORMAL[:, : sigma.shape[-1]] ** 2
    squares /= squares.mean(0)
    return np.sqrt(roots**2 @ squares.T).mean(-1)


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


def checked(affine: Affine, non_rigid: NonRigid) -> None:
    """Compare with other ways: an elliptic integral, weights instead of fields, fields drawn."""
    rng = np.random.default_rng(1)
    sigma = np.array([[2.0, 0.6], [0.6, 0.4]])
    closed = np.sqrt(2 / np.pi * 2.2) * ellipe(1 - 0.2 / 2.2)  # its eigenvalues are 2.2 and 0.2
    assert abs(expected_length(sigma) / closed - 1) < 0.01
    prior = Prior(affine, non_rigid, (20, 24))
    p = rng.choice(480, 60, replace=False)
    n = rng.normal(size=(60, 2))
    n /= np.linalg.norm(n, axis=1)[:, None]
    known = rng.normal(size=60)
    roots = [np.linalg.cholesky(c + 1e-12 * np.eye(len(c))) for c in prior.axes]
    root = np.kron(np.eye(2), 3 * np.sqrt(prior.ratio) * np.kron(*roots))
    rigid = np.kron(np.eye(2), prior.basis) @ np.linalg.cholesky(prior.affine)
    parts = np.c_[root, rigid].reshape(2, 480, -1)  # u as a sum of independent parts
    seen = np.einsum("pd,dpk->pk", n, parts[:, p])
    spread = np.linalg.inv(seen.T @ seen / EXACT**2 + np.eye(seen.shape[1]))
    mean, sigma = posterior(prior, 3.0, p, n, known, np.arange(480))
    assert np.allclose(mean.T, parts @ (spread @ seen.T @ known / EXACT**2), atol=1e-4)
    assert np.allclose(sigma, np.einsum("dpk,kl,epl->pde", parts, spread, parts), atol=1e-5)
    fields = [non_rigid(rng, (20, 24), (1, 1)) for _ in range(DRAWS)]
    drawn = np.array([(v / v.abs().max())[0, 0].flatten().numpy() for v in fields])
    model = prior.smooth(np.array([250]), np.arange(480))[0]
    sampled = (drawn[:, [250]] * drawn).mean(0)
    assert np.abs(sampled - model).max() < 0.12 * model[250]
    print("Lengths, posterior and covariance agree with those computed in other ways.", flush=True)


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
