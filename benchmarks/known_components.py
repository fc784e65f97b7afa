"""Posterior of DIRV-Net's random fields given some of their components.

Gaussian process regression with the generator's own covariance; see ``dirvnet_floor.py``.
"""

from collections.abc import Sequence

import numpy as np
import torch
from scipy.linalg import cho_factor, cho_solve, solve_triangular
from scipy.special import ellipe

from regnet_lab import ops
from regnet_lab.data.synthesis.displacements.affine_nonrigid import Affine, NonRigid

EXACT = 1e-3  # voxels: deviation of a component that is called known
DRAWS = 2000
BORDER = 8  # voxels
NORMAL = np.random.default_rng(2).normal(size=(2000, 3))


class Prior:
    """Zero mean and covariance of the fields: cov(u_d(x), u_e(y)).

    Non-rigid: [d = e] size^2 ratio prod_k C_k(x_k, y_k), with size its largest component, C_k the
    mean over the coarse grid sizes of A A^T, A the smoothing along axis k, scaled to mean diagonal
    1.  Affine: the sample covariance of its numbers.
    """

    def __init__(self, affine: Affine, non_rigid: NonRigid, shape: Sequence[int]) -> None:
        rng, self.ndim = np.random.default_rng(0), len(shape)
        (fewest, most), spacing = non_rigid.coarse_grid_size, [1.0] * self.ndim
        self.axes = []
        for n in shape:
            smooth = [
                non_rigid.compute_axis_matrix(n, s).double().numpy()
                for s in range(fewest, most + 1)
            ]
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
        covariance = self.smooth(p, q)
        covariance *= n @ (size**2 * m.T)
        covariance += self.rigid(p, n) @ (self.affine @ self.rigid(q, m).T)
        return covariance


def posterior(
    prior: Prior, size: float, p: np.ndarray, n: np.ndarray, values: np.ndarray, at: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Compute mean (len(at), D) and covariance (len(at), D, D) of u, given n . u at voxels p."""
    axes = [np.tile(axis, (len(at), 1)) for axis in np.eye(prior.ndim)]
    inner = prior.covariance(size, p, n, p, n)
    inner.ravel()[:: len(p) + 1] += EXACT**2
    factor = cho_factor(inner, lower=True, overwrite_a=True, check_finite=False)
    across = [prior.covariance(size, p, n, at, axis) for axis in axes]
    mean = np.stack([c.T @ cho_solve(factor, values) for c in across], 1)
    solved = [solve_triangular(factor[0], c, lower=True) for c in across]
    smooth = size**2 * prior.ratio * np.ones(len(at))
    for axis, place in zip(prior.axes, prior.x[at].T, strict=True):
        smooth *= axis.diagonal()[place]
    rigid = [prior.rigid(at, axis) for axis in axes]
    sigma = np.empty((len(at), prior.ndim, prior.ndim))
    for d, e in np.ndindex(prior.ndim, prior.ndim):
        before = (rigid[d] @ prior.affine * rigid[e]).sum(1) + (d == e) * smooth
        sigma[:, d, e] = before - (solved[d] * solved[e]).sum(0)
    return mean, sigma


def expected_length(sigma: np.ndarray) -> np.ndarray:
    """Compute E |e| of normal e with covariance (..., D, D) by sampling."""
    roots = np.sqrt(np.linalg.eigvalsh(sigma).clip(1e-16))
    squares = NORMAL[:, : sigma.shape[-1]] ** 2
    squares /= squares.mean(0)
    return np.sqrt(roots**2 @ squares.T).mean(-1)


def checked(affine: Affine, non_rigid: NonRigid) -> None:
    """Check against an elliptic integral, weights instead of fields, and sampled fields."""
    rng = np.random.default_rng(1)
    sigma = np.array([[2.0, 0.6], [0.6, 0.4]])
    closed = np.sqrt(2 / np.pi * 2.2) * ellipe(1 - 0.2 / 2.2)  # its eigenvalues are 2.2 and 0.2
    assert abs(expected_length(sigma) / closed - 1) < 0.01
    prior = Prior(affine, non_rigid, (20, 24))
    p = rng.choice(480, 60, replace=False)
    n = rng.normal(size=(60, 2))
    n /= np.linalg.norm(n, axis=1)[:, None]
    values = rng.normal(size=60)
    roots = [np.linalg.cholesky(c + 1e-12 * np.eye(len(c))) for c in prior.axes]
    root = np.kron(np.eye(2), 3 * np.sqrt(prior.ratio) * np.kron(*roots))
    rigid = np.kron(np.eye(2), prior.basis) @ np.linalg.cholesky(prior.affine)
    parts = np.c_[root, rigid].reshape(2, 480, -1)  # u as a sum of independent parts
    observed = np.einsum("pd,dpk->pk", n, parts[:, p])
    spread = np.linalg.inv(observed.T @ observed / EXACT**2 + np.eye(observed.shape[1]))
    mean, sigma = posterior(prior, 3.0, p, n, values, np.arange(480))
    assert np.allclose(mean.T, parts @ (spread @ observed.T @ values / EXACT**2), atol=1e-4)
    assert np.allclose(sigma, np.einsum("dpk,kl,epl->pde", parts, spread, parts), atol=1e-5)
    fields = [non_rigid(rng, (20, 24), (1, 1)) for _ in range(DRAWS)]
    drawn = np.array([(v / v.abs().max())[0, 0].flatten().numpy() for v in fields])
    model = prior.smooth(np.array([250]), np.arange(480))[0]
    sampled = (drawn[:, [250]] * drawn).mean(0)
    assert np.abs(sampled - model).max() < 0.12 * model[250]
    print("Lengths, posterior and covariance agree with those computed in other ways.", flush=True)
