"""RegNet's second version: pairs of images and their artificial deformations, method by method."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from regnet_lab import ops
from regnet_lab.data.synthesis.displacements.masked_image import Scene, SceneGenerator, body
from regnet_lab.data.synthesis.intensity import noisy, occluded, sponge
from regnet_lab.data.synthesis.phantom_pairs import SPLITS, landmarks
from regnet_lab.errors import UserError
from regnet_lab.types import Pair

ITEM, NEXT, POINTS = 1, 2, 3  # random streams
LOOKS = ("clean", "sponge", "noise", "occluded")


@dataclass(frozen=True)
class Deformation:
    """What an item is made of.

    Args:
        name: Of the image.
        number: k of its k-th deformation.
        turn: Round of all methods; from the first on, ``source`` is a next image.
        method: Its name.
        look: Of the deformed image.
        source: What was deformed.
        image: (1, *shape) deformed, as it looks.
        plain: The source seen through the field, without a look to it.
        u: (1, D, *shape) the field, voxels.
    """

    name: str
    number: int
    turn: int
    method: str
    look: str
    source: Scene
    image: Tensor
    plain: Scene
    u: Tensor


class Artificial(Dataset[Pair]):
    """Every image of a split, deformed by one method after another.

    Item i deforms image i mod n by method k = i div n of the list; after the last method comes the
    first again, now on a next image: the original under ``next_field``, with sponge and noise.  The
    deformed image is the fixed one, so that the field is the known displacement.

    Args:
        split: ``train``, ``val`` or ``test``.
        images: ``images(split=...)`` gives pairs; their moving images, 0 being air, are deformed,
            and their moving masks, if there are any, are the lungs.
        methods: By name, in order (:mod:`regnet_lab.data.synthesis.displacements.bspline`, ``respiratory``).
        next_field: Makes the next images.
        looks: Of the deformed image, one of which is drawn: ``clean``, ``sponge``, ``noise``,
            ``occluded`` (:mod:`regnet_lab.data.synthesis.intensity`).
        size: Number of pairs, or of each split by its name.
        seed: Another seed, other pairs.
        unit: Width in HU of the window that made [0, 1] of the images.
        threshold: What is brighter is body, and what it surrounds.
        points: Number of landmarks in the lung, where it is known.

    Raises:
        UserError: There is no such split or look, or nothing to deform.
    """

    def __init__(
        self,
        split: str,
        images: Callable[..., Any],
        methods: Mapping[str, SceneGenerator],
        next_field: SceneGenerator,
        looks: Sequence[str] = ("clean", "sponge", "noise"),
        size: int | Mapping[str, int] = 64,
        seed: int = 0,
        unit: float = 1400.0,
        threshold: float = 0.5,
        points: int = 0,
    ) -> None:
        if split not in SPLITS:
            raise UserError(f"split={split!r} is unknown: choose one of {', '.join(SPLITS)}.")
        if unknown := [look for look in looks if look not in LOOKS] or not looks:
            raise UserError(f"looks={list(looks)}: {unknown} must be some of {', '.join(LOOKS)}.")
        self.images = images(split=split)
        if not len(self.images) or not methods:
            raise UserError(f"There are no images or no methods to deform them with for '{split}'.")
        self.split, self.seed, self.looks = split, seed, list(looks)
        self.methods, self.next_field = dict(methods), next_field
        self.unit, self.threshold, self.points = unit, threshold, points
        self.size = size.get(split, 0) if isinstance(size, Mapping) else size

    def __len__(self) -> int:
        return self.size

    def generator(self, *place: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, SPLITS.index(self.split), *place])

    def scene(self, pair: Pair) -> Scene:
        """The moving image of an unbatched pair."""
        image = pair["moving"][0]
        lung = pair["moving_mask"][0] > 0 if "moving_mask" in pair else None
        inside = body(image, self.threshold)
        return Scene(
            image, pair["spacing"].tolist(), inside if lung is None else inside | lung, lung
        )

    def deformed(
        self, rng: np.random.Generator, scene: Scene, u: Tensor, look: str
    ) -> tuple[Tensor, Scene]:
        """The scene seen through u: its image with a look to it, and all of it without."""

        def through(mask: Tensor) -> Tensor:
            return ops.warp(mask[None, None], u, "nearest", "zeros")[0, 0]

        image = ops.warp(scene.image[None, None], u)
        lung = None if scene.lung is None else through(scene.lung)
        plain = Scene(image[0, 0], scene.spacing, through(scene.body), lung)
        if look == "sponge":
            image = sponge(rng, image, u, plain.body)
        elif look == "noise":
            image = noisy(rng, image, 10 / self.unit, 10 / self.unit)
        elif look == "occluded":
            inside = torch.from_numpy(plain.need_lung(self))
            values = (200 / self.unit, 220 / self.unit)
            image, _ = occluded(rng, image, inside, scene.spacing, values=values)
        return image[0], plain

    def following(self, scene: Scene, image: int, turn: int) -> Scene:
        """The next image that turn ``turn`` begins with; the image itself at first."""
        if not turn:
            return scene
        rng = self.generator(image, turn, NEXT)
        u = self.next_field(rng, scene)
        _, plain = self.deformed(rng, scene, u, "clean")
        denser = sponge(rng, plain.image[None, None], u, plain.body)
        seen = noisy(rng, denser, 2 / self.unit, 0)[0, 0]
        return Scene(seen, scene.spacing, plain.body, plain.lung)

    def deformation(self, index: int) -> Deformation:
        """All there is to know of an item."""
        number, image = divmod(index, len(self.images))
        turn, which = divmod(number, len(self.methods))
        method = list(self.methods)[which]
        found = self.images[image]
        source = self.following(self.scene(found), image, turn)
        rng = self.generator(image, number, ITEM)
        u = self.methods[method](rng, source)
        look = self.looks[int(rng.integers(len(self.looks)))]
        seen, plain = self.deformed(rng, source, u, look)
        return Deformation(found["name"], number, turn, method, look, source, seen, plain, u)

    def __getitem__(self, index: int) -> Pair:
        if not 0 <= index < self.size:
            raise IndexError(f"pair {index} of {self.size}")
        made = self.deformation(index)
        pair = {"fixed": made.image, "moving": made.source.image[None], "displacement": made.u[0]}
        if made.source.lung is not None and made.plain.lung is not None:
            pair |= {
                "fixed_mask": made.plain.lung[None].float(),
                "moving_mask": made.source.lung[None].float(),
            }
            if self.points and made.plain.lung.any():
                rng = self.generator(index, POINTS)
                start = landmarks(rng, made.plain.lung[None, None].long(), self.points)
                end = start + ops.sample_at(made.u, start[None])[0]
                pair |= {"fixed_points": start, "moving_points": end}
        title = f"{made.name}-{made.method}-{made.look}-{self.split}-{made.number:04d}"
        spacing = torch.tensor(made.source.spacing)
        return Pair(**pair, spacing=spacing, name=title)  # type: ignore[typeddict-item]
