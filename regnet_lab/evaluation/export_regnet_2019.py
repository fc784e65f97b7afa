"""Artificial deformations on disk, in the folders RegNet's second version reads and writes."""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813
from pytorch_lightning import Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from regnet_lab import ops
from regnet_lab.data.synthesis.displacements.masked_image import Scene
from regnet_lab.data.synthesis.regnet_2019 import Artificial, Deformation
from regnet_lab.errors import UserError
from regnet_lab.spatial import coordinates
from regnet_lab.spatial.writers import displacement_image, write_atomically
from regnet_lab.training.module import RegistrationModule
from regnet_lab.types import Pair

METHODS = {
    "respiratory": "respiratory_motion",
    "single": "single_frequency",
    "mixed": "mixed_frequency",
}


def folder_of(method: str) -> str:
    """``single2`` is published as ``single_frequency_D2``, ``zero`` as ``zero_D0``."""
    name, number = re.fullmatch(r"(.*?)(\d*)", method).groups()  # type: ignore[union-attr]
    return f"{METHODS.get(name, name)}_D{number or 0}"


class Published:
    """Write every item of an :class:`regnet_lab.data.synthesis.regnet_2019.Artificial` data set.

    ``Elastix/LungExp/<case>/Result/`` gets the images, with their masks of lung and body, that are
    deformed: ``<type>ImageFullRS1``, ``<type>MaskFullRS1``, ``<type>TorsoFullRS1``.
    ``Elastix/Artificial_Generation/<experiment>/<data>/<type>/<case>/Dsmooth<k>/<method>_D<n>/``
    gets ``DeformedImage_<Look>``, ``DeformedLung``, ``DeformedTorso``, ``Jac_pad0`` and at last
    ``DeformedDVF_pad0``, and ``.../Dsmooth0/DNext<k>/`` the next image that a later deformation
    began with, as ``NextIm``, ``NextLung`` and ``NextTorso``.  At stages 2 and 4 all names end in
    ``_s2`` and ``_s4``.  Images are int16 in HU, fields float32 vectors in mm.  What is there
    already is left alone.

    Args:
        folder: Where ``Elastix`` is made.
        experiment: Name of the settings, published as ``3D_max20_D14_K`` and so on.
        data: Name of the data, such as ``SPREAD``.
        kind: Of the images, such as ``Fixed``.
        stage: Millimetres per voxel: 1, 2 or 4.
        case: Name of a case, ``{}`` being that of its image.
        air: HU of 0.
        ending: Of the files.
    """

    def __init__(
        self,
        folder: str,
        experiment: str,
        data: str = "SPREAD",
        kind: str = "Fixed",
        stage: int = 1,
        case: str = "{}",
        air: float = -1000.0,
        ending: str = ".mha",
    ) -> None:
        self.folder, self.experiment, self.data, self.kind = Path(folder), experiment, data, kind
        self.case, self.air = case, air
        self.ending = ending if stage == 1 else f"_s{stage}{ending}"

    def run(self, trainer: Trainer, module: RegistrationModule, pairs: DataLoader[Pair]) -> None:
        """Write what is not there yet.

        Raises:
            UserError: The data are of another kind.
        """
        made = getattr(pairs.dataset, "watched", pairs.dataset)
        if not isinstance(made, Artificial):
            raise UserError(
                "task=published writes artificial deformations of RegNet's second version: "
                "choose data=regnet_2019_s1, _s2 or _s4."
            )
        for index in range(len(made)):
            self.write(made, index)

    def write(self, made: Artificial, index: int) -> None:
        """Write one item."""
        number, image = divmod(index, len(made.images))
        case = self.case.format(made.images[image]["name"])
        root = self.folder / "Elastix"
        deformed = root / "Artificial_Generation" / self.experiment / self.data / self.kind / case
        turn, which = divmod(number, len(made.methods))
        own = deformed / f"Dsmooth{number}" / folder_of(list(made.methods)[which])
        if (own / f"DeformedDVF_pad0{self.ending}").exists():
            return
        item = made.deformation(index)
        names: tuple[str, ...] = ("NextIm", "NextLung", "NextTorso")
        if turn:
            self.put(deformed / f"Dsmooth0/DNext{number}", self.scene(item.source, names, made))
        else:
            names = tuple(f"{self.kind}{what}FullRS1" for what in ("Image", "Mask", "Torso"))
            self.put(root / "LungExp" / case / "Result", self.scene(item.source, names, made))
        self.put(own, self.item(item, made))

    def put(self, folder: Path, files: Mapping[str, sitk.Image]) -> None:
        """Write files that are not there yet, in their order."""
        for name, image in files.items():
            path = folder / f"{name}{self.ending}"
            if not path.exists():
                write_atomically(path, image)

    def hounsfield(self, image: Tensor, made: Artificial) -> np.ndarray:
        """(*shape) int16 of what the images' window made."""
        return (image * made.unit + self.air).round().clamp(-32768, 32767).numpy().astype(np.int16)

    def scene(
        self, scene: Scene, names: tuple[str, ...], made: Artificial
    ) -> dict[str, sitk.Image]:
        """An image and the masks of its lung, if it is known, and its body."""
        arrays = {names[0]: self.hounsfield(scene.image, made)}
        if scene.lung is not None:
            arrays[names[1]] = scene.lung.numpy().astype(np.uint8)
        arrays[names[2]] = scene.body.numpy().astype(np.uint8)
        return {name: coordinates.to_image(array, affine(scene)) for name, array in arrays.items()}

    def item(self, item: Deformation, made: Artificial) -> dict[str, sitk.Image]:
        """The files of a deformation, the field last: then all is there."""
        seen = Scene(item.image[0], item.plain.spacing, item.plain.body, item.plain.lung)
        names = (f"DeformedImage_{item.look.capitalize()}", "DeformedLung", "DeformedTorso")
        determinant = ops.jacobian_determinant(item.u)[0].numpy().astype(np.float32)
        return {
            **self.scene(seen, names, made),
            "Jac_pad0": coordinates.to_image(determinant, affine(seen)),
            "DeformedDVF_pad0": displacement_image(item.u, affine(seen)),
        }


def affine(scene: Scene) -> coordinates.Matrix:
    """Of a scene's grid, whose axes lead to the left, the back and the head from the origin."""
    return coordinates.RAS_TO_LPS @ np.diag([*scene.spacing, *[1.0] * (4 - len(scene.spacing))])
