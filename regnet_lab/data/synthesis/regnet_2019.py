"""Pairs of images and their artificial deformations, as in RegNet's second version.

Source: Sokooti et al., 3D convolutional neural networks image registration based on efficient
supervised learning from artificial deformations, arXiv 1908.10235.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from numpy.random import Generator
from torch import Tensor

from regnet_lab import ops
from regnet_lab.data.datasets.base import GeneratedPairs
from regnet_lab.data.synthesis.deformed_images import add_landmarks
from regnet_lab.data.synthesis.displacements.masked_image import (
    MaskedDisplacementGenerator,
    MaskedImage,
    segment_body,
)
from regnet_lab.data.synthesis.intensity import add_noise, add_occlusions, apply_sponge_model
from regnet_lab.errors import UserError
from regnet_lab.types import Pair

PAIR_STREAM, BASE_IMAGE_STREAM, POINTS_STREAM = 1, 2, 3  # independent random streams of a seed
INTENSITY_MODELS = ("clean", "sponge", "noise", "occluded")


@dataclass(frozen=True)
class DeformedSample:
    """One deformed image with everything it was made from."""

    name: str  # name of the image
    deformation_index: int  # number of the deformation of this image, from 0
    # number of the pass through all methods; after the first, ``source`` is a deformed base image
    round_index: int
    method: str
    intensity_model: str
    source: MaskedImage  # the image that was deformed
    image: Tensor  # (1, *shape) deformed image, after the intensity model
    deformed: MaskedImage  # the deformed image with its masks, before the intensity model
    displacement: Tensor  # (1, D, *shape) in voxels


@dataclass(eq=False, repr=False)
class RegNet2019Pairs(GeneratedPairs):
    """Images of a split, each deformed by a list of methods in turn.

    Item i deforms image i mod n by method number i div n. After the last method the list starts
    again, now on a base image: the original after ``base_deformation``, the sponge model and noise.
    The deformed image is the fixed image, so that the sampled displacement is the known one.
    """

    split: str  # ``train``, ``val`` or ``test``
    # ``images(split=...)`` makes a data set whose moving images (air is 0) are deformed; moving
    # masks, if any, are those of the lungs
    images: Callable[..., Any]
    # deformation methods by name, in order (:mod:`regnet_lab.data.synthesis.displacements.bspline`,
    # ``respiratory``)
    deformations: Mapping[str, MaskedDisplacementGenerator]
    base_deformation: MaskedDisplacementGenerator  # deforms the base images
    # one of these is drawn for each deformed image: ``clean``, ``sponge``, ``noise``, ``occluded``
    # (:mod:`regnet_lab.data.synthesis.intensity`)
    intensity_models: Sequence[str] = ("clean", "sponge", "noise")
    num_pairs: int | Mapping[str, int] = 64  # number of pairs, for all splits or by split
    seed: int = 0
    window_width: float = 1400.0  # width, in HU, of the window that mapped the images to [0, 1]
    body_threshold: float = 0.5  # intensity above which a voxel belongs to the body
    num_points: int = 0  # number of landmarks in the lung, if there are masks

    def __post_init__(self) -> None:
        super().__post_init__()
        unknown = [model for model in self.intensity_models if model not in INTENSITY_MODELS]
        if unknown or not self.intensity_models:
            raise UserError(
                f"intensity_models={list(self.intensity_models)}: unknown {unknown}; choose at "
                f"least one of {', '.join(INTENSITY_MODELS)}."
            )
        self.source_dataset = self.images(split=self.split)
        if not len(self.source_dataset) or not self.deformations:
            raise UserError(f"There are no images or no deformations for '{self.split}'.")

    def make_masked_image(self, pair: Pair) -> MaskedImage:
        """Return the moving image of an unbatched pair with its body and lung masks."""
        image = pair["moving"][0]
        lung = pair["moving_mask"][0] > 0 if "moving_mask" in pair else None
        body = segment_body(image, self.body_threshold)
        body = body if lung is None else body | lung
        return MaskedImage(image, pair["spacing"].tolist(), body, lung)

    def deform(
        self, rng: Generator, source: MaskedImage, u: Tensor, intensity_model: str
    ) -> tuple[Tensor, MaskedImage]:
        """Deform an image and its masks: the image (1, *shape) after the intensity model, and image
        and masks before it.
        """

        def warp_mask(mask: Tensor) -> Tensor:
            return ops.warp(mask[None, None], u, "nearest", "zeros")[0, 0]

        image = ops.warp(source.image[None, None], u)
        lung = None if source.lung is None else warp_mask(source.lung)
        deformed = MaskedImage(image[0, 0], source.spacing, warp_mask(source.body), lung)
        if intensity_model == "sponge":
            image = apply_sponge_model(rng, image, u, deformed.body)
        elif intensity_model == "noise":
            image = add_noise(rng, image, 10 / self.window_width, 10 / self.window_width)
        elif intensity_model == "occluded":
            inside = torch.from_numpy(deformed.require_lung(self))
            values = (200 / self.window_width, 220 / self.window_width)
            image, _ = add_occlusions(rng, image, inside, source.spacing, values=values)
        return image[0], deformed

    def make_base_image(
        self, original: MaskedImage, image_index: int, round_index: int
    ) -> MaskedImage:
        """Make the base image of a round; in round 0 it is the original."""
        if not round_index:
            return original
        rng = self.make_rng(image_index, round_index, BASE_IMAGE_STREAM)
        u = self.base_deformation(rng, original)
        _, deformed = self.deform(rng, original, u, "clean")
        image = apply_sponge_model(rng, deformed.image[None, None], u, deformed.body)
        image = add_noise(rng, image, 2 / self.window_width, 0)[0, 0]
        return MaskedImage(image, original.spacing, deformed.body, deformed.lung)

    def make_sample(self, index: int) -> DeformedSample:
        """Generate item ``index`` with everything it was made from."""
        deformation_index, image_index = divmod(index, len(self.source_dataset))
        round_index, method_index = divmod(deformation_index, len(self.deformations))
        method = list(self.deformations)[method_index]
        pair = self.source_dataset[image_index]
        source = self.make_base_image(self.make_masked_image(pair), image_index, round_index)
        rng = self.make_rng(image_index, deformation_index, PAIR_STREAM)
        u = self.deformations[method](rng, source)
        model = self.intensity_models[int(rng.integers(len(self.intensity_models)))]
        image, deformed = self.deform(rng, source, u, model)
        return DeformedSample(
            pair["name"], deformation_index, round_index, method, model, source, image, deformed, u
        )

    def make_pair(self, index: int) -> Pair:
        sample = self.make_sample(index)
        pair: dict[str, object] = {
            "fixed": sample.image,
            "moving": sample.source.image[None],
            "displacement": sample.displacement[0],
            "spacing": torch.tensor(sample.source.spacing),
            "name": f"{sample.name}-{sample.method}-{sample.intensity_model}-{self.split}"
            f"-{sample.deformation_index:04d}",
        }
        fixed_lung, moving_lung = sample.deformed.lung, sample.source.lung
        if fixed_lung is None or moving_lung is None:
            return cast(Pair, pair)
        pair |= {"fixed_mask": fixed_lung[None].float(), "moving_mask": moving_lung[None].float()}
        rng = self.make_rng(index, POINTS_STREAM)
        return add_landmarks(rng, pair, fixed_lung[None], self.num_points)
