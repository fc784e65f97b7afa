import inspect
from functools import partial

import monai.losses
import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view
from scipy.ndimage import gaussian_filter

from regnet_lab.ops import similarity
from regnet_lab.ops.box_filter import squared_correlation

SHAPES = pytest.mark.parametrize("shape", [(9, 11), (7, 8, 9)])
MEASURES = {
    "mean_squares": similarity.mean_squares,
    "global_ncc": similarity.global_ncc,
    "local_ncc": partial(similarity.local_ncc, window=3),
    "local_ncc_replicate": partial(similarity.local_ncc, window=5, padding="replicate"),
    "mutual_information": similarity.mutual_information,
    "normalised_mutual_information": partial(similarity.mutual_information, normalised=True),
    "normalised_gradient_field": similarity.normalised_gradient_field,
    "mind": similarity.mind,
}
EVERY = pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES.keys())


def textured(shape, batch=1, sigma=1.0, seed=0):
    """Images in [0, 1], (batch, 1, *shape)."""
    noise = np.random.default_rng(seed).normal(size=(batch, 1, *shape))
    smooth = gaussian_filter(noise, [0, 0, *[sigma] * len(shape)])
    return torch.from_numpy((smooth - smooth.min()) / np.ptp(smooth))


def couple(shape, batch=1):
    """Two images that agree in part."""
    a, b = textured(shape, batch, seed=1), textured(shape, batch, seed=2)
    return a, 0.7 * a + 0.3 * b


def test_every_public_measure_is_under_test():
    public = {
        name
        for name, f in inspect.getmembers(similarity, inspect.isfunction)
        if {"fixed", "warped", "mask"} <= set(inspect.signature(f).parameters)
        and not name.startswith("_")
    }
    assert public == set(MEASURES) - {"local_ncc_replicate", "normalised_mutual_information"}


@SHAPES
@EVERY
def test_each_case_has_its_own_number(shape, measure):
    f, w = couple(shape, batch=3)
    mask = (textured(shape, 3, seed=3) > 0.4).double()
    for extra in ([], [mask]):
        together = measure(f, w, *extra)
        alone = [measure(*(x[i : i + 1] for x in (f, w, *extra))) for i in range(3)]
        assert together.shape == (3,)
        assert together.unique().numel() == 3
        torch.testing.assert_close(together, torch.cat(alone))


@SHAPES
@EVERY
def test_equal_images_score_best(shape, measure):
    f, w = couple(shape)
    assert measure(f, f) < measure(f, w) < measure(f, textured(shape, seed=7))


@EVERY
@pytest.mark.parametrize("shape", [(22, 20), (14, 13, 15)])
def test_a_shift_is_found_along_every_axis(measure, shape):
    big = textured([n + 6 for n in shape], seed=4, sigma=1.5)
    for axis in range(len(shape)):
        crops = [
            big[(..., *[slice(3 + s * (k == axis), -3 + s * (k == axis) or None)
                        for k in range(len(shape))])]
            for s in range(-3, 4)
        ]  # fmt: skip
        swept = torch.cat([measure(crops[3], c) for c in crops])
        assert swept.argmin() == 3, (axis, swept)


@SHAPES
@EVERY
def test_a_mask_of_ones_changes_nothing_and_a_real_one_does(shape, measure):
    f, w = couple(shape)
    torch.testing.assert_close(measure(f, w, torch.ones_like(f)), measure(f, w))
    mask = (textured(shape, seed=3) > 0.5).double()
    assert (measure(f, w, mask) - measure(f, w)).abs() > 1e-4
    torch.testing.assert_close(measure(f, w, mask.to(torch.uint8)), measure(f, w, mask))


@pytest.mark.parametrize("shape", [(16, 9), (16, 7, 8)])
@EVERY
def test_voxels_outside_the_mask_have_no_influence(shape, measure):
    f, w = couple(shape)
    mask = torch.zeros_like(f)
    mask[:, :, :7] = 1
    far = torch.zeros_like(f)
    far[:, :, 12:] = 1  # out of reach of the windows
    for outside in (textured(shape, seed=8), torch.zeros_like(f)):
        changed = [torch.where(far > 0, x, image) for image, x in ((f, outside), (w, 1 - outside))]
        torch.testing.assert_close(measure(*changed, mask), measure(f, w, mask))
        assert (measure(*changed) - measure(f, w)).abs() > 1e-3


@SHAPES
@EVERY
def test_an_empty_mask_is_survived(shape, measure):
    f, w = couple(shape)
    w.requires_grad_()
    value = measure(f, w, torch.zeros_like(f))
    value.sum().backward()
    assert torch.isfinite(value).all()
    assert torch.isfinite(w.grad).all()


@SHAPES
@EVERY
@pytest.mark.parametrize("case", ["both flat", "fixed flat", "warped flat", "equal", "zero"])
def test_gradients_are_finite_even_without_structure(shape, measure, case):
    f, w = (image.float() for image in couple(shape))
    flat = torch.full_like(f, 0.8)
    f, w = {
        "both flat": (flat, flat.clone()),
        "fixed flat": (flat, w),
        "warped flat": (f, flat),
        "equal": (f, f.clone()),
        "zero": (0 * f, 0 * w),
    }[case]
    w.requires_grad_()
    value = measure(f, w)
    value.sum().backward()
    assert torch.isfinite(value).all()
    assert torch.isfinite(w.grad).all()


@pytest.mark.parametrize("shape", [(4, 5), (3, 4, 3)])
@EVERY
def test_gradients_agree_with_finite_differences(shape, measure):
    f, w = couple(shape)
    mask = (textured(shape, seed=3) > 0.3).double()
    assert torch.autograd.gradcheck(lambda x: measure(f, x, mask), (w.requires_grad_(),))


@SHAPES
@EVERY
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(shape, measure, dtype):
    f, w = (100 * image.float() for image in couple(shape))  # squares overflow float16
    coarse = measure(f.to(dtype).float(), w.to(dtype).float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = measure(f.to(dtype), w.to(dtype))
    assert value.dtype == torch.float32
    assert torch.equal(value, coarse)


@SHAPES
@EVERY
def test_rounded_images_score_nearly_the_same(shape, measure):
    f, w = (image.float() for image in couple(shape))
    value = measure(f.to(torch.float16), w.to(torch.float16))
    torch.testing.assert_close(value, measure(f, w), rtol=0.01, atol=1e-3)


@SHAPES
def test_mean_squares_is_the_mean_square(shape):
    f, w = couple(shape, batch=2)
    expected = ((f.numpy() - w.numpy()) ** 2).reshape(2, -1).mean(1)
    np.testing.assert_allclose(similarity.mean_squares(f, w), expected)


@SHAPES
def test_global_ncc_is_one_less_the_squared_correlation(shape):
    f, w = couple(shape)
    expected = 1 - np.corrcoef(f.numpy().ravel(), w.numpy().ravel())[0, 1] ** 2
    value = similarity.global_ncc(f, w)
    np.testing.assert_allclose(value, [expected], rtol=1e-9)
    torch.testing.assert_close(similarity.global_ncc(f, 0.3 - 2 * w), value)
    at = (textured(shape, seed=3) > 0.5).numpy()
    masked = 1 - np.corrcoef(f.numpy()[at], w.numpy()[at])[0, 1] ** 2
    value = similarity.global_ncc(f, w, torch.from_numpy(at).double())
    np.testing.assert_allclose(value, [masked], rtol=1e-9)


@SHAPES
@pytest.mark.parametrize("scale", [1e-3, 0.05, 1.0, 1e3])
@pytest.mark.parametrize("masked", [False, True])
def test_global_ncc_does_not_depend_on_the_intensity_scale(shape, scale, masked):
    f, w = (image.float() for image in couple(shape))
    mask = (textured(shape, seed=3) > 0.5).float() if masked else None
    own = similarity.global_ncc(scale * f, 7 * scale - 0.1 * scale * f, mask)
    np.testing.assert_allclose(own, [0], atol=1e-4)
    value = similarity.global_ncc(scale * f, scale * w, mask)
    torch.testing.assert_close(value, similarity.global_ncc(f, w, mask), rtol=1e-4, atol=1e-5)


@SHAPES
@pytest.mark.parametrize("level", [0.0, 0.3, 1000.0])
def test_global_ncc_of_a_constant_image_is_one_with_finite_gradients(shape, level):
    f = couple(shape)[0].float()
    constant = torch.full_like(f, level, requires_grad=True)
    value = similarity.global_ncc(f, constant)
    np.testing.assert_allclose(value.detach(), [1], atol=1e-3)
    value.sum().backward()
    assert torch.isfinite(constant.grad).all()


@SHAPES
@pytest.mark.parametrize("window", [3, 5, 9])
@pytest.mark.parametrize(("padding", "mode"), [("zeros", "constant"), ("replicate", "edge")])
def test_local_ncc_agrees_with_dense_windows(shape, window, padding, mode):
    f, w = couple(shape)
    margin = [(window // 2, window // 2)] * len(shape)
    a, b = (
        sliding_window_view(np.pad(x[0, 0].numpy(), margin, mode=mode), [window] * len(shape))
        .reshape(*shape, -1)
        .copy()
        for x in (f, w)
    )
    a -= a.mean(-1, keepdims=True)
    b -= b.mean(-1, keepdims=True)
    squared = (a * b).sum(-1) ** 2 / ((a * a).sum(-1) * (b * b).sum(-1) + 1e-5)
    value = similarity.local_ncc(f, w, window=window, padding=padding)
    np.testing.assert_allclose(value, [1 - squared.mean()], rtol=1e-8)
    mask = textured(shape, seed=3)
    expected = 1 - (squared * mask[0, 0].numpy()).sum() / mask.sum()
    value = similarity.local_ncc(f, w, mask, window, padding)
    np.testing.assert_allclose(value, [expected], rtol=1e-8)


@SHAPES
@pytest.mark.parametrize("window", [3, 7])
def test_local_ncc_agrees_with_monai(shape, window):
    f, w = couple(shape)
    peer = monai.losses.LocalNormalizedCrossCorrelationLoss(
        len(shape), window, "rectangular", smooth_nr=0, smooth_dr=1e-9
    )
    value = similarity.local_ncc(f, w, window=window, epsilon=1e-12)
    torch.testing.assert_close(value - 1, peer(w, f)[None], rtol=1e-5, atol=0)


@SHAPES
def test_local_ncc_does_not_see_linear_changes_of_intensity(shape):
    f, w = couple(shape)
    value = similarity.local_ncc(f, w, window=3, padding="replicate", epsilon=1e-12)
    changed = similarity.local_ncc(f, 0.2 - 3 * w, window=3, padding="replicate", epsilon=1e-12)
    torch.testing.assert_close(changed, value)


@SHAPES
@pytest.mark.parametrize("bins", [8, 23, 32])
def test_mutual_information_agrees_with_monai(shape, bins):
    f, w = (2 * image - 0.5 for image in couple(shape, batch=2))  # beyond [0, 1] at both ends
    peer = monai.losses.GlobalMutualInformationLoss("gaussian", bins, 0.5, reduction="none")
    value = similarity.mutual_information(f, w, bins=bins)
    torch.testing.assert_close(value, peer(w, f).view(-1), rtol=0, atol=3e-4)


@SHAPES
def test_mutual_information_of_two_equal_halves_is_that_of_a_coin(shape):
    f = (textured(shape) > 0.5).double()  # bins so coarse that a Gaussian stays in its own
    p = f.mean().item()
    entropy = -p * np.log(p) - (1 - p) * np.log(1 - p)
    spread = np.exp(-2) / (1 + np.exp(-2))  # share of a voxel that leaks into the other of 2 bins
    q = p * (1 - spread) + (1 - p) * spread
    value = similarity.mutual_information(f, 1 - f, bins=2)
    joint = np.array(
        [
            [spread * (1 - spread), p * spread**2 + (1 - p) * (1 - spread) ** 2],
            [p * (1 - spread) ** 2 + (1 - p) * spread**2, spread * (1 - spread)],
        ]
    )
    marginals = -2 * (q * np.log(q) + (1 - q) * np.log(1 - q))
    together = -(joint * np.log(joint)).sum()
    np.testing.assert_allclose(value, [together - marginals], atol=1e-5)
    assert -entropy < value.item() < 0
    ratio = similarity.mutual_information(f, 1 - f, bins=2, normalised=True)
    np.testing.assert_allclose(ratio, [-marginals / together], atol=1e-5)


@SHAPES
@pytest.mark.parametrize("normalised", [False, True])
def test_mutual_information_does_not_care_which_image_is_which_nor_for_contrast(shape, normalised):
    f, w = couple(shape)
    score = partial(similarity.mutual_information, normalised=normalised)
    torch.testing.assert_close(score(f, w), score(w, f))
    torch.testing.assert_close(score(f, w), score(f, 1 - w))


@SHAPES
def test_gradient_fields_agree_with_numpy(shape):
    f, w = couple(shape)
    g, h = (np.stack(np.gradient(x[0, 0].numpy())) for x in (f, w))
    e = 0.1**2
    overlap = ((g * h).sum(0) + e) ** 2 / (((g * g).sum(0) + e) * ((h * h).sum(0) + e))
    value = similarity.normalised_gradient_field(f, w, edge=0.1)
    np.testing.assert_allclose(value, [1 - overlap.mean()])


@SHAPES
def test_gradient_fields_see_edges_but_not_their_sign(shape):
    f, w = couple(shape)
    score = partial(similarity.normalised_gradient_field, edge=1e-4)
    assert score(f, f).abs() < 1e-12
    torch.testing.assert_close(score(f, 1 - w), score(f, w), rtol=0, atol=1e-3)
    assert score(f, 1 - f) < 1e-3 < 0.1 < score(f, w)


@pytest.mark.parametrize(("shape", "channels"), [((9, 11), 4), ((7, 8, 9), 12)])
def test_mind_has_a_channel_for_every_corner_and_ignores_linear_contrast(shape, channels):
    image = textured(shape, batch=2)
    descriptor = similarity.mind_ssc(image)
    assert descriptor.shape == (2, channels, *shape)
    assert descriptor.amax(1).eq(1).all()  # the nearest patches define 1
    assert 0 <= descriptor.min() < 0.2
    torch.testing.assert_close(similarity.mind_ssc(3 - 2 * image), descriptor)


@SHAPES
@pytest.mark.parametrize(("radius", "dilation"), [(1, 1), (1, 2), (2, 1)])
def test_mind_compares_the_patches_around_neighbours(shape, radius, dilation):
    image, ndim = textured(shape, sigma=0.0), len(shape)
    padded = np.pad(image[0, 0].numpy(), 4, mode="edge")
    for at in [tuple(n // 2 for n in shape), (3, 4, 3)[:ndim]]:
        steps = [s * dilation * row for row in np.eye(ndim, dtype=int) for s in (1, -1)]

        def patch(step, at=at):
            middle = np.array(at) + step + 4
            return padded[tuple(slice(c - radius, c + radius + 1) for c in middle)]

        distances = np.array(
            [
                ((patch(a) - patch(b)) ** 2).mean()
                for i, a in enumerate(steps)
                for b in steps[i + 1 :]
                if (a != -b).any()  # opposite ones do not lie around a corner
            ]
        )
        expected = distances - distances.min()
        expected = np.exp(-expected / expected.mean())
        value = similarity.mind_ssc(image, radius, dilation)[0, :, *at]
        np.testing.assert_allclose(np.sort(value), np.sort(expected))


@SHAPES
def test_mind_is_the_mean_square_of_the_descriptors(shape):
    f, w = couple(shape, batch=2)
    a, b = (similarity.mind_ssc(x).numpy().reshape(2, -1) for x in (f, w))
    np.testing.assert_allclose(similarity.mind(f, w), ((a - b) ** 2).mean(1))
    torch.testing.assert_close(similarity.mind(f, 1 - 0.5 * w), similarity.mind(f, w))


@SHAPES
def test_local_ncc_with_noise_has_its_optimum_at_equal_images(shape):
    image = torch.rand(1, 1, *shape, dtype=torch.float64, generator=torch.manual_seed(0))
    image[:, :, : shape[0] // 2] = 0.5  # a constant half
    measure = partial(similarity.local_ncc, window=3, padding="replicate", epsilon=0.0, noise=0.05)
    warped = image.clone().requires_grad_()
    value = measure(image, warped).sum()
    (gradient,) = torch.autograd.grad(value, warped)
    assert abs(value.item()) < 1e-6
    assert gradient.abs().max() < 1e-6
    others = image + 0.1 * torch.randn(image.shape, generator=torch.manual_seed(1))
    assert measure(image, others) > 1e-3
    without = torch.autograd.grad(
        similarity.local_ncc(image, warped, window=3, padding="replicate", epsilon=1e-5).sum(),
        warped,
    )[0]
    assert without.abs().max() > 10 * gradient.abs().max()  # why the floor is there


@SHAPES
def test_the_gradient_of_local_ncc_with_noise_is_that_of_its_plain_form(shape):
    f, w = (
        torch.rand(1, 1, *shape, dtype=torch.float64, generator=torch.manual_seed(seed))
        for seed in (0, 1)
    )
    f.requires_grad_(), w.requires_grad_()
    floor = 0.1**2 * 3 ** len(shape)
    plain = 1 - squared_correlation(f, w, 3, "replicate", 0.0, floor).mean()
    value = similarity.local_ncc(f, w, None, 3, "replicate", 0.0, 0.1).sum()
    torch.testing.assert_close(value, plain, rtol=1e-5, atol=1e-6)
    for exact, fast in zip(
        torch.autograd.grad(plain, [f, w]), torch.autograd.grad(value, [f, w]), strict=True
    ):
        torch.testing.assert_close(fast, exact, rtol=1e-4, atol=1e-7)
