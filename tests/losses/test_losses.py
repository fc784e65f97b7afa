import monai.losses
import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, map_coordinates

from regnet_lab import losses, ops
from regnet_lab.errors import UserError
from regnet_lab.losses.regularization import affine_fit
from regnet_lab.ops import similarity
from regnet_lab.ops.pairs import registered
from regnet_lab.types import Pair, Registration

SHAPES = pytest.mark.parametrize("shape", [(9, 11), (7, 8, 9)])
SPACING = (1.5, 0.7, 3.0)


def smooth(shape, channels=1, batch=1, sigma=2.0, seed=0):
    noise = np.random.default_rng(seed).normal(size=(batch, channels, *shape))
    noise = gaussian_filter(noise, [0, 0, *[sigma] * len(shape)])
    return torch.from_numpy(noise / noise.std()).float()


def make_pair(shape, batch=1, **others):
    fixed, moving = smooth(shape, batch=batch, seed=1), smooth(shape, batch=batch, seed=2)
    spacing = torch.tensor(SPACING[: len(shape)]).expand(batch, -1)
    return Pair(fixed=fixed, moving=moving, spacing=spacing, name=["case 7"] * batch, **others)


def complete(shape, batch=1):
    """A pair that offers everything a loss may ask for."""
    scale = torch.tensor(shape) - 1.0
    points = torch.rand(2, batch, 6, len(shape), generator=torch.Generator().manual_seed(0))
    return make_pair(
        shape,
        batch,
        fixed_labels=smooth(shape, 4, batch, 1.0, 3).argmax(1, keepdim=True),
        moving_labels=smooth(shape, 4, batch, 1.0, 4).argmax(1, keepdim=True),
        fixed_points=points[0] * scale,
        moving_points=points[1] * scale,
        displacement=smooth(shape, len(shape), batch, seed=5),
        fixed_mask=(smooth(shape, batch=batch, seed=6) > -0.5).float(),
    )


def answer(u, *coarser):
    """A registration for the losses that look at its fields alone."""
    return Registration([*coarser, u], torch.zeros(len(u), 1, *u.shape[2:]))


def linear(matrix, shape):
    """u(x) = matrix x."""
    moved = np.einsum("ij,j...->i...", matrix, np.indices(shape, dtype=float))
    return torch.from_numpy(moved).float()[None]


def constant(vector, shape):
    return torch.tensor(vector).view(1, -1, *[1] * len(shape)).expand(-1, -1, *shape).clone()


def random_matrix(ndim, seed=0):
    return np.random.default_rng(seed).normal(size=(ndim, ndim))


@SHAPES
@pytest.mark.parametrize("power", [1, 2])
def test_diffusion_of_a_linear_field_is_the_norm_of_its_matrix(shape, power):
    matrix = random_matrix(len(shape))
    value = losses.Diffusion(power)(make_pair(shape), answer(linear(matrix, shape)))
    assert value.item() == pytest.approx((np.abs(matrix) ** power).sum(), rel=1e-4)


@SHAPES
def test_diffusion_of_a_wave(shape):
    u, axis, n = torch.zeros(2, len(shape), *shape), len(shape) - 1, shape[-1]
    u[:, 0] = torch.sin(0.7 * torch.arange(n))  # channel 0 waves along the last axis
    slopes = 2 * np.sin(0.35) * np.cos(0.7 * (np.arange(n - 1) + 0.5))
    value = losses.Diffusion()(make_pair(shape), answer(u))
    assert value.item() == pytest.approx((slopes**2).mean(), rel=1e-5)
    value = losses.Diffusion()(make_pair(shape), answer(u.transpose(2, axis + 2)))
    assert value.item() == pytest.approx((slopes**2).mean(), rel=1e-5)


@SHAPES
def test_isotropic_total_variation_of_a_linear_field_is_the_root_of_its_squares(shape):
    matrix = random_matrix(len(shape))
    value = losses.TotalVariation()(make_pair(shape), answer(linear(matrix, shape)))
    assert value.item() == pytest.approx(np.linalg.norm(matrix), rel=1e-4)


@SHAPES
def test_total_variation_of_a_step_does_not_depend_on_how_wide_it_is(shape):
    values = []
    for width in (1, 4):
        u = torch.zeros(1, len(shape), *shape)
        ramp = ((torch.arange(shape[-1]) - 2) / width).clamp(0, 1)
        u[:, 0], u[:, 1] = 3 * ramp, 4 * ramp
        values.append(losses.TotalVariation(1e-12)(make_pair(shape), answer(u)).item())
    assert values == pytest.approx([5 / (shape[-1] - 1)] * 2, rel=1e-4)


@SHAPES
def test_total_variation_of_a_still_field_has_a_finite_gradient(shape):
    u = torch.zeros(1, len(shape), *shape, requires_grad=True)
    losses.TotalVariation()(make_pair(shape), answer(u)).backward()
    assert not u.grad.any()


def quadratic(shape, seed=0):
    """u_i = x^T H_i x / 2 with a random symmetric H_i, and all H_i."""
    hessian = np.random.default_rng(seed).normal(size=(len(shape),) * 3)
    hessian = (hessian + hessian.transpose(0, 2, 1)) / 2
    x = np.indices(shape, dtype=float)
    u = np.einsum("ijk,j...,k...->i...", hessian, x, x) / 2
    return torch.from_numpy(u)[None], hessian


@SHAPES
def test_bending_of_a_quadratic_field_is_the_norm_of_its_hessians(shape):
    u, hessian = quadratic(shape)
    value = losses.Bending()(make_pair(shape), answer(u))
    assert value.item() == pytest.approx((hessian**2).sum(), rel=1e-4)


@SHAPES
@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")  # MONAI's indexing
def test_bending_is_monai_s_times_the_number_of_channels(shape):
    u, _ = quadratic(shape, seed=1)
    peer = monai.losses.BendingEnergyLoss()(u) * len(shape)
    value = losses.Bending()(make_pair(shape), answer(u))
    assert value.item() == pytest.approx(peer.item(), rel=1e-4)


@SHAPES
def test_bending_of_a_wave_and_of_an_affine_field(shape):
    n = shape[-1]
    affine = linear(random_matrix(len(shape)), shape)
    assert losses.Bending()(make_pair(shape), answer(affine)) < 1e-8
    wave = torch.zeros_like(affine)
    wave[:, 0] = torch.sin(0.7 * torch.arange(n))
    curvature = 4 * np.sin(0.35) ** 2 * np.sin(0.7 * np.arange(1, n - 1))
    value = losses.Bending()(make_pair(shape), answer(affine + wave))
    assert value.item() == pytest.approx((curvature**2).mean(), rel=1e-4)


@SHAPES
def test_folding_is_the_depth_of_the_folds(shape):
    u = smooth(shape, len(shape), batch=2, sigma=1) * 1.5
    ndim = len(shape)
    ahead = (..., *[slice(None, -1)] * ndim)
    slopes = [np.diff(u.numpy(), axis=a + 2, append=0)[ahead] for a in range(ndim)]
    jacobian = np.moveaxis(np.stack(slopes, 2), (1, 2), (-2, -1)) + np.eye(ndim)
    depth = np.maximum(-np.linalg.det(jacobian), 0)
    assert 0.02 < (depth > 0).mean() < 0.8
    pair = make_pair(shape, 2)
    total, mean = (losses.Folding(reduction)(pair, answer(u)) for reduction in ("sum", "mean"))
    assert total.item() == pytest.approx(depth.sum(), rel=1e-4)
    assert mean.item() == pytest.approx(depth.mean(), rel=1e-4)


@SHAPES
def test_folding_of_one_known_fold(shape):
    u = torch.zeros(1, len(shape), *shape, requires_grad=True)
    with torch.no_grad():
        u[:, 1, :, 4] = 1.2  # det = 1 - 1.2 on the slice before the step back
    value = losses.Folding("sum")(make_pair(shape), answer(u))
    count = np.prod(np.delete(np.array(shape) - 1, 1))
    assert value.item() == pytest.approx(0.2 * count, rel=1e-4)
    value.backward()
    assert (u.grad[:, 1, :, 4].sum(), u.grad[:, 1, :, 5].sum()) == (count, -count)
    assert losses.Folding()(make_pair(shape), answer(0.5 * u)) == 0


@SHAPES
def test_endpoint_error_is_the_mean_distance(shape):
    u, known = smooth(shape, len(shape), 2, seed=8), smooth(shape, len(shape), 2, seed=9)
    value = losses.EndpointError()(make_pair(shape, 2, displacement=known), answer(u))
    expected = np.linalg.norm((u - known).numpy(), axis=1).mean()
    assert value.item() == pytest.approx(expected, rel=1e-5)


@SHAPES
def test_the_endpoint_error_of_the_known_answer_has_a_finite_gradient(shape):
    known = smooth(shape, len(shape))
    u = known.clone().requires_grad_()
    value = losses.EndpointError()(make_pair(shape, displacement=known), answer(u))
    value.backward()
    assert value < 1e-5
    assert torch.isfinite(u.grad).all()


@SHAPES
@pytest.mark.parametrize("delta", [0.3, 1.0])
def test_huber_is_quadratic_near_and_linear_far(shape, delta):
    u, known = smooth(shape, len(shape), 2, seed=8), smooth(shape, len(shape), 2, seed=9)
    pair = make_pair(shape, 2, displacement=known)
    error = np.abs((u - known).numpy())
    expected = np.where(error < delta, error**2 / 2, delta * (error - delta / 2)).mean()
    value = losses.HuberDisplacement(delta)(pair, answer(u))
    assert value.item() == pytest.approx(expected, rel=1e-5)


def box(shape, axis, start, label=5):
    labels = torch.zeros(1, 1, *shape, dtype=torch.int64)
    at = [slice(2, 6)] * len(shape)
    at[axis] = slice(start, start + 4)
    labels[(0, 0, *at)] = label
    return labels


@SHAPES
@pytest.mark.parametrize(("step", "dice"), [(0.0, 0.75), (0.5, 0.875), (1.0, 1.0), (-3.0, 0.0)])
def test_soft_dice_of_shifted_boxes(shape, step, dice):
    for axis in range(len(shape)):
        pair = make_pair(shape, fixed_labels=box(shape, axis, 1), moving_labels=box(shape, axis, 2))
        u = torch.zeros(1, len(shape), *shape)
        u[:, axis] = step
        if step == -3.0:  # nothing but the background of the zero padding comes in
            pair["moving_labels"] = box(shape, axis, 0)
            u[:, axis] = 10
        value = losses.SoftDice()(pair, answer(u))
        assert value.item() == pytest.approx(1 - dice, abs=1e-4)


@SHAPES
def test_the_gradient_of_soft_dice_pulls_the_structure_home(shape):
    for axis in range(len(shape)):
        pair = make_pair(shape, fixed_labels=box(shape, axis, 1), moving_labels=box(shape, axis, 3))
        u = torch.full((1, len(shape), *shape), 0.01, requires_grad=True)
        losses.SoftDice()(pair, answer(u)).backward()
        pull = -u.grad.sum(dim=[0, *range(2, u.ndim)])
        assert pull[axis] > 0.1
        assert pull.argmax() == axis


@SHAPES
def test_soft_dice_is_the_mean_over_the_structures_of_each_fixed_image(shape):
    pair, u = complete(shape, batch=2), smooth(shape, len(shape), batch=2, seed=7)
    pair["fixed_labels"][1][pair["fixed_labels"][1] == 2] = 0  # one case lacks structure 2
    pair["moving_labels"][0][pair["moving_labels"][0] == 3] = 9  # missing here, 9 missing there
    grid, scores = np.indices(shape), []
    for case in range(2):
        fixed, moving = (pair[f"{side}_labels"][case, 0].numpy() for side in ("fixed", "moving"))
        for label in set(np.unique(fixed)) - {0}:
            f, m = fixed == label, (moving == label).astype(float)
            w = map_coordinates(m, grid + u[case].numpy(), order=1, mode="grid-constant")
            scores.append(2 * (f * w).sum() / (f.sum() + w.sum()))
    assert len(scores) == 5
    value = losses.SoftDice()(pair, answer(u))
    assert value.item() == pytest.approx(1 - np.mean(scores), abs=1e-4)


@SHAPES
def test_soft_dice_without_any_structure_is_finite(shape):
    pair = complete(shape)
    pair["fixed_labels"] = torch.zeros_like(pair["fixed_labels"])
    u = smooth(shape, len(shape)).requires_grad_()
    value = losses.SoftDice()(pair, answer(u))
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(u.grad).all()


@SHAPES
def test_soft_dice_where_labelled_lets_pairs_without_labels_pass(shape):
    pair, u = complete(shape), smooth(shape, len(shape), seed=7)
    lenient = losses.SoftDice(where_labelled=True)
    assert lenient(pair, answer(u)) == losses.SoftDice()(pair, answer(u)) > 0
    for key in ("fixed_labels", "moving_labels"):
        without = {k: v for k, v in pair.items() if k != key}
        assert lenient(without, answer(u)) == 0


@SHAPES
def test_the_affine_fit_is_least_squares(shape):
    u, ndim = smooth(shape, len(shape), 2, seed=7), len(shape)
    x = np.indices(shape).reshape(ndim, -1).T
    x = np.column_stack([x - (np.array(shape) - 1) / 2, np.ones(len(x))])
    expected = [np.linalg.lstsq(x, case.reshape(ndim, -1).T)[0].T for case in u.numpy()]
    np.testing.assert_allclose(affine_fit(u), expected, atol=1e-5)
    value = losses.AffinePenalty()(make_pair(shape, 2), answer(u))
    assert value.item() == pytest.approx(np.square(expected).mean(), rel=1e-4)


@SHAPES
def test_the_affine_penalty_knows_a_linear_field_and_leaves_out_the_rest(shape):
    ndim = len(shape)
    matrix = random_matrix(ndim)
    u = linear(matrix, shape)
    t = matrix @ (np.array(shape) - 1) / 2  # at the centre
    expected = (np.square(matrix).sum() + np.square(t).sum()) / (ndim * (ndim + 1))
    value = losses.AffinePenalty()(make_pair(shape), answer(u))
    assert value.item() == pytest.approx(expected, rel=1e-4)
    waves = smooth(shape, ndim, seed=7)
    fit = linear(affine_fit(waves)[0, :, :ndim].numpy(), shape)
    fit = fit - fit.mean(list(range(2, fit.ndim)), keepdim=True)
    rest = waves - waves.mean(list(range(2, fit.ndim)), keepdim=True) - fit
    assert rest.abs().max() > 0.5
    value = losses.AffinePenalty()(make_pair(shape), answer(u + rest))
    assert value.item() == pytest.approx(expected, rel=1e-3)


def test_the_affine_penalty_of_a_single_voxel_is_its_length():
    value = losses.AffinePenalty()(make_pair((9, 11)), answer(torch.full((1, 2, 1, 1), 3.0)))
    assert value.item() == pytest.approx(2 * 9 / 6)


@SHAPES
def test_landmark_distance_is_in_millimetres_and_goes_the_way_of_the_points(shape):
    ndim = len(shape)
    start = complete(shape)["fixed_points"]
    step = torch.arange(1.0, ndim + 1)
    pair = make_pair(shape, fixed_points=start, moving_points=start + step)
    length = (step * torch.tensor(SPACING[:ndim])).norm().item()
    for factor in (-1.0, 0.0, 1.0, 1.5):
        u = constant((factor * step).tolist(), shape)
        value = losses.LandmarkDistance()(pair, answer(u))
        assert value.item() == pytest.approx(abs(1 - factor) * length, rel=1e-5, abs=1e-5)


@SHAPES
def test_landmark_distance_reads_the_field_between_the_voxels(shape):
    matrix, pair = random_matrix(len(shape)), complete(shape, batch=2)
    fixed, moving = pair["fixed_points"].numpy(), pair["moving_points"].numpy()
    error = (fixed + fixed @ matrix.T - moving) * np.array(SPACING[: len(shape)])
    u = linear(matrix, shape).expand(2, -1, *[-1] * len(shape))
    value = losses.LandmarkDistance()(pair, answer(u))
    assert value.item() == pytest.approx(np.linalg.norm(error, axis=-1).mean(), rel=1e-4)


@SHAPES
def test_similarity_measures_the_warped_image_and_heeds_the_mask(shape):
    pair, u = complete(shape, batch=2), smooth(shape, len(shape), 2, seed=7)
    out = registered(pair, [u])
    squares = (pair["fixed"] - ops.warp(pair["moving"], u)).square()
    whole = losses.Similarity(similarity.mean_squares)(pair, out)
    torch.testing.assert_close(whole, squares.mean())
    inside = losses.Similarity(similarity.mean_squares, masked=True)(pair, out)
    cases = zip(squares, pair["fixed_mask"] > 0, strict=True)
    expected = torch.stack([square[at].mean() for square, at in cases]).mean()
    torch.testing.assert_close(inside, expected)


def doubled(shape):
    return [2 * n for n in shape]


@SHAPES
def test_each_level_has_its_own_voxels(shape):
    full = doubled(shape)
    step = [1.0, 2.0, 4.0][: len(shape)]
    known, length = constant(step, full), np.linalg.norm(step)
    fine, coarse = torch.zeros_like(known), torch.zeros(1, len(shape), *shape)
    pair = make_pair(full, displacement=known)
    for weights in ([1.0, 0.0], [0.0, 1.0], [0.3, 0.7]):
        value = losses.PerLevel(losses.EndpointError(), weights)(pair, answer(fine, coarse))
        expected = weights[0] * length / 2 + weights[1] * length
        assert value.item() == pytest.approx(expected, rel=1e-5)


@SHAPES
def test_the_same_map_at_every_level_is_right_at_every_level(shape):
    full = doubled(shape)
    known = linear(0.1 * random_matrix(len(shape)), full)
    pair = make_pair(full, displacement=known)
    term = losses.PerLevel(losses.EndpointError(), [1.0, 1.0])
    coarse = ops.resize_field(known, shape)
    assert term(pair, answer(known, coarse)) < 1e-4
    assert term(pair, answer(known, ops.resize(known, shape))) > 0.1  # forgot to halve the voxels
    error = [term(pair, answer(a, b)) for a, b in ((known, 0 * coarse), (0 * known, coarse))]
    assert error[1].item() == pytest.approx(2 * error[0].item(), rel=0.01)


@SHAPES
def test_landmarks_are_as_far_apart_at_every_level(shape):
    full = doubled(shape)
    pair = complete(full)
    u = constant([0.5, -1.0, 2.0][: len(shape)], full)
    fields = (u, ops.resize_field(u, shape))
    first, last = (
        losses.PerLevel(losses.LandmarkDistance(), weights)(pair, answer(*fields))
        for weights in ([1.0, 0.0], [0.0, 1.0])
    )
    torch.testing.assert_close(first, last)


@SHAPES
def test_each_level_warps_its_own_image(shape):
    full, ndim = doubled(shape), len(shape)
    pair = complete(full)
    small = {side: ops.resize(pair[side], shape) for side in ("fixed", "moving")}
    coarse, fine = smooth(shape, ndim, seed=8), smooth(full, ndim, seed=9)
    levels = [(small["fixed"], small["moving"], coarse), (pair["fixed"], pair["moving"], fine)]
    errors = [(f - ops.warp(m, u)).square().mean() for f, m, u in levels]
    term = losses.PerLevel(losses.Similarity(similarity.mean_squares), [0.25, 2.0])
    value = term(pair, registered(pair, [coarse, fine]))
    torch.testing.assert_close(value, 0.25 * errors[0] + 2 * errors[1])


ALL = {
    "similarity": lambda: losses.Similarity(similarity.mean_squares),
    "masked": lambda: losses.Similarity(similarity.local_ncc, masked=True),
    "diffusion": losses.Diffusion,
    "total variation": lambda: losses.Diffusion(power=1),
    "isotropic total variation": losses.TotalVariation,
    "bending": losses.Bending,
    "folding": losses.Folding,
    "endpoint": losses.EndpointError,
    "huber": losses.HuberDisplacement,
    "dice": losses.SoftDice,
    "dice where labelled": lambda: losses.SoftDice(where_labelled=True),
    "affine": losses.AffinePenalty,
    "landmarks": losses.LandmarkDistance,
    "per level": lambda: losses.PerLevel(losses.SoftDice(), [0.5, 1.0]),
    "unrolled": lambda: losses.Unrolled(losses.EndpointError(), temperature=0.5),
    "cropped": lambda: losses.Cropped(losses.HuberDisplacement()),
}
EVERY = pytest.mark.parametrize("make", ALL.values(), ids=ALL.keys())


def test_every_loss_is_under_test():
    kinds = {type(make()) for make in ALL.values()}
    assert kinds == set(losses.Loss.__subclasses__())


@SHAPES
@EVERY
@pytest.mark.parametrize("half", [False, True])
def test_the_gradient_of_every_loss_reaches_the_displacement(shape, make, half):
    pair = complete(shape, batch=2)
    u = (3 * smooth(shape, len(shape), 2, sigma=1, seed=7)).requires_grad_()  # folds somewhere
    coarse = ops.resize_field(u, [4, 5, 6][: len(shape)])
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
        value = make()(pair, registered(pair, [coarse, u]))
    value.backward()
    assert value.shape == ()
    assert value.dtype == torch.float32
    assert torch.isfinite(value)
    assert torch.isfinite(u.grad).all()
    assert u.grad.abs().max() > 0


@SHAPES
@EVERY
def test_mixed_precision_does_not_change_a_loss(shape, make):
    pair, u = complete(shape), smooth(shape, len(shape), seed=7)
    coarse = ops.resize_field(u, [4, 5, 6][: len(shape)])
    single = make()(pair, registered(pair, [coarse, u]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = make()(pair, registered(pair, [coarse, u]))
    torch.testing.assert_close(mixed, single)


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (ALL["masked"], "fixed_mask"),
        (ALL["endpoint"], "displacement"),
        (ALL["huber"], "displacement"),
        (ALL["dice"], "fixed_labels"),
        (ALL["dice"], "moving_labels"),
        (ALL["landmarks"], "fixed_points"),
        (ALL["landmarks"], "moving_points"),
        (ALL["per level"], "moving_labels"),
        (ALL["unrolled"], "displacement"),
    ],
)
def test_what_the_pair_lacks_is_named(make, key):
    pair = complete((9, 11))
    del pair[key]
    u = torch.zeros(1, 2, 9, 11)
    with pytest.raises(UserError, match=rf"(?s){key}.*case 7"):
        make()(pair, registered(pair, [u, u]))


def test_weights_stay_on_the_term():
    for make in (losses.Bending, losses.Diffusion, losses.Folding, losses.SoftDice):
        assert make(weight=0.25).weight == 0.25
    pair, u = complete((9, 11)), smooth((9, 11), 2)
    values = [losses.Diffusion(weight=w)(pair, answer(u)) for w in (1.0, 5.0)]
    assert values[0] == values[1]  # the module multiplies


def test_per_level_wants_a_weight_for_every_field():
    pair, u = complete((9, 11)), torch.zeros(1, 2, 9, 11)
    for count in (1, 3):
        term = losses.PerLevel(losses.Diffusion(), [1.0] * count)
        with pytest.raises(UserError, match=rf"{count}.*2"):
            term(pair, registered(pair, [u, u]))
