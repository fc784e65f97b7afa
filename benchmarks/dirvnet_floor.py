"""The least endpoint error that any method can have on DIRV-Net's chessboards.

python benchmarks/dirvnet_floor.py [--pairs 20] [--runs <folder> ...] [--out <folder>]

A board is flat but for its edges.  Where a pixel of the fixed image shows a mixture of two cells,
its grey level tells how far x + u(x) lies across the edge and nothing about how far along it;
elsewhere it tells no more than the cell.  So of u are known, exactly, the components

    n(x) . u(x),  n = g / |g|,  g = grad moving at x + u(x), wherever g is not zero,

and the rest only as far as u is smooth.  How smooth is known too: u is the affine field, six
numbers, plus white noise on a grid of seeds, smoothed and stretched, a sum of many small
independent parts; the covariance of both follows from the generator.  Given the components, u(x)
is normal with the mean and covariance Sigma(x) of Gaussian process regression.  The mean is the
best guess there is and misses by

    E |e| = sqrt(2 / pi) s1 E(1 - s2^2 / s1^2)

on average, s1 >= s2 being the deviations along the axes of Sigma(x) and E the complete elliptic
integral.

Every pair is looked at twice: ``exact``, with g of the bilinear image, and ``generous``, with
central differences, which grants the component to pixels next to an edge that show nothing of it.
``exact`` leaves out what the cell tells, ``generous`` is well on the safe side.  Both are given
what no method sees: the direction n and the size of the non-rigid part.

``expected`` is E |e|, ``found`` what the mean really misses by, ``inside`` eight voxels and more
from the border (there ``long`` where |u| is four voxels or more, else ``short``), ``seen`` what a
run misses n . u by where it is known exactly.  The formulas are compared with others before they
are used.
"""

import argparse
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


class Remembered:
    """A generator that keeps its last field."""

    def __init__(self, generator: NonRigid) -> None:
        self.generator = generator

    def __call__(self, *args) -> Tensor:  # type: ignore[no-untyped-def]
        self.last = self.generator(*args)
        return self.last


class Prior:
    """Mean zero and covariance of the fields: cov(u_d(x), u_e(y)).

    Non-rigid: [d = e] size^2 ratio C_0(x_0, y_0) C_1(x_1, y_1) with size its largest component and
    C_k the mean over the numbers of seeds of A A^T, A the smoothing along axis k, brought to mean
    diagonal 1.  Affine: the covariance of its numbers, drawn often.
    """

    def __init__(self, affine: Affine, non_rigid: NonRigid, shape: tuple[int, int]) -> None:
        rng = np.random.default_rng(0)
        fewest, most = non_rigid.seeds
        self.axes = []
        for n in shape:
            smooth = [non_rigid.axis(n, s).double().numpy() for s in range(fewest, most + 1)]
            c = np.mean([a @ a.T for a in smooth], 0)
            self.axes.append(c / c.diagonal().mean())
        drawn = [non_rigid(rng, shape, (1, 1)) for _ in range(DRAWS // 10)]
        self.ratio = float(np.mean([v.pow(2).mean() / v.abs().max() ** 2 for v in drawn]))
        x = ops.identity_grid(shape, torch.zeros(1)).numpy()[0].reshape(2, -1).T
        self.x = x.astype(int)
        self.inside = np.minimum(self.x, self.x.max(0) - self.x).min(1) >= BORDER
        self.basis = np.c_[np.ones(len(x)), (x - (np.array(shape) - 1) / 2) / 32]  # (P, 3)
        numbers = [
            np.linalg.lstsq(self.basis, affine(rng, shape, (1, 1))[0].flatten(1).T.numpy())[0]
            for _ in range(DRAWS)
        ]
        self.affine = np.cov(np.array(numbers).transpose(0, 2, 1).reshape(DRAWS, 6).T)

    def smooth(self, p: np.ndarray, q: np.ndarray) -> np.ndarray:
        """(len(p), len(q)) C_0 C_1 between pixels of these numbers."""
        (i, j), (k, m) = self.x[p].T, self.x[q].T
        return self.ratio * self.axes[0][np.ix_(i, k)] * self.axes[1][np.ix_(j, m)]

    def rigid(self, p: np.ndarray, n: np.ndarray) -> np.ndarray:
        """(len(p), 6) n . u of the affine numbers, at pixels p."""
        return (n[:, :, None] * self.basis[p][:, None, :]).reshape(len(p), 6)

    def covariance(
        self, size: float, p: np.ndarray, n: np.ndarray, q: np.ndarray, m: np.ndarray
    ) -> np.ndarray:
        """(len(p), len(q)) cov(n . u at p, m . u at q)."""
        smooth = size**2 * (n @ m.T) * self.smooth(p, q)
        return smooth + self.rigid(p, n) @ self.affine @ self.rigid(q, m).T


def posterior(
    prior: Prior, size: float, p: np.ndarray, n: np.ndarray, known: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean (P, 2) and covariance (P, 2, 2) of u at all pixels, given n . u = known at pixels p."""
    everywhere = np.arange(len(prior.x))
    axes = np.broadcast_to(np.eye(2)[:, None], (2, len(everywhere), 2))
    factor = cho_factor(prior.covariance(size, p, n, p, n) + EXACT**2 * np.eye(len(p)), lower=True)
    across = [prior.covariance(size, p, n, everywhere, axis) for axis in axes]
    mean = np.stack([c.T @ cho_solve(factor, known) for c in across], 1)
    rest = [solve_triangular(factor[0], c, lower=True) for c in across]
    smooth = prior.ratio * np.prod([prior.axes[k].diagonal()[prior.x[:, k]] for k in (0, 1)], 0)
    sigma = np.empty((len(everywhere), 2, 2))
    for d in range(2):
        for e in range(2):
            first, second = prior.rigid(everywhere, axes[d]), prior.rigid(everywhere, axes[e])
            before = (first @ prior.affine * second).sum(1) + (d == e) * size**2 * smooth
            sigma[:, d, e] = before - (rest[d] * rest[e]).sum(0)
    return mean, sigma


def expected_length(sigma: np.ndarray) -> np.ndarray:
    """E |e| of normal e with covariance (..., 2, 2)."""
    smaller, larger = np.moveaxis(np.linalg.eigvalsh(sigma).clip(1e-16), -1, 0)
    return np.sqrt(2 / np.pi * larger) * ellipe(1 - smaller / larger)


def slope_exact(moving: Tensor, u: Tensor) -> Tensor:
    """(1, 2, *shape) gradient of the bilinear image at x + u, zero beyond its border."""
    with torch.enable_grad():
        at = u.double().requires_grad_()
        (slope,) = torch.autograd.grad(ops.warp(moving.double(), at).sum(), at)
    return slope


def slope_generous(moving: Tensor, u: Tensor) -> Tensor:
    """The same of central differences, which reach a pixel further."""
    return ops.warp(ops.gradient(moving)[:, 0], u).double()


def flat(field: Tensor) -> np.ndarray:
    """(1, 2, *shape) as (P, 2)."""
    return field[0].flatten(1).T.double().numpy()


def normals(slope: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Pixels where the slope (1, 2, *shape) is not zero, and its direction there."""
    g = flat(slope)
    length = np.linalg.norm(g, axis=1)
    p = np.flatnonzero(length > 1e-6)
    return p, g[p] / length[p, None]


def averages(name: str, errors: np.ndarray, prior: Prior) -> dict[str, float]:
    """Mean error of all pixels and of those inside."""
    return {name: errors.mean(), f"{name} inside": errors[prior.inside].mean()}


def floor(name: str, prior: Prior, size: float, slope: Tensor, u: Tensor) -> dict[str, float]:
    """Expected and found error of the best guess at a field u (1, 2, *shape)."""
    (p, n), truth = normals(slope), flat(u)
    mean, sigma = posterior(prior, size, p, n, (n * truth[p]).sum(1))
    found = np.linalg.norm(mean - truth, axis=1)
    return (
        {f"{name} known": len(p)}
        | averages(f"{name} expected", expected_length(sigma), prior)
        | averages(f"{name} found", found, prior)
    )


def reached(
    name: str, off: np.ndarray, truth: np.ndarray, prior: Prior, slope: Tensor
) -> dict[str, float]:
    """The same of a run that is off by so much, of its share that the image shows, and by |u|."""
    p, n = normals(slope)
    error, length = np.linalg.norm(off, axis=1), np.linalg.norm(truth, axis=1)
    long = prior.inside & (length >= LONG)
    return averages(name, error, prior) | {
        f"{name} seen": np.abs((n * off[p]).sum(1)).mean(),
        f"{name} inside, short": error[prior.inside & ~long].mean(),
        f"{name} inside, long": error[long].mean() if long.any() else np.nan,
    }


def checked(affine: Affine, non_rigid: NonRigid) -> None:
    """Compare the formulas with others: lengths drawn, weights instead of fields, fields drawn."""
    rng = np.random.default_rng(1)
    sigma = np.array([[2.0, 0.6], [0.6, 0.5]])
    drawn = np.linalg.norm(rng.multivariate_normal([0, 0], sigma, 10**6), axis=1).mean()
    assert abs(expected_length(sigma) - drawn) < 5e-3
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
    mean, sigma = posterior(prior, 3.0, p, n, known)
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
    parser.add_argument("--out", type=Path, default=Path("outputs/dirvnet_floor"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    with initialize_config_dir(CONF, version_base="1.3"):
        cfg = compose("train", ["data=chessboard"])
    pairs = build(cfg.data).pairs("test")
    sums = pairs.fields.fields[0]
    checked(*sums.fields)
    modules = {Path(run).name: trained(run) for run in given.runs}
    sums.fields[1] = last = Remembered(sums.fields[1])
    shape = pairs[0]["displacement"].shape[1:]
    prior, grid = Prior(sums.fields[0], last.generator, shape), ControlGrid(shape, [4, 4])
    rows = []
    for k in range(given.pairs):
        pair = default_collate([pairs[k]])
        u, moving, size = pair["displacement"], pair["moving"], last.last.abs().max().item()
        exact, generous = slope_exact(moving, u), slope_generous(moving, u)
        row = averages("identity", np.linalg.norm(flat(u), axis=1), prior)
        off = flat(grid.dense(grid.fit(u)) - u)
        row |= averages("control points", np.linalg.norm(off, axis=1), prior)
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
