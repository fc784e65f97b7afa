"""Write artificial deformations in the folder layout of RegNet's second version (2019)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from pytorch_lightning import Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from regnet_lab import ops
from regnet_lab.data.synthesis.displacements.masked_image import MaskedImage
from regnet_lab.data.synthesis.regnet_2019 import DeformedSample, RegNet2019Pairs
from regnet_lab.data.worker_monitor import WorkerMonitor
from regnet_lab.errors import UserError
from regnet_lab.spatial import coordinates
from regnet_lab.spatial.writers import displacement_to_sitk, write_sitk_image
from regnet_lab.training.module import RegistrationModule
from regnet_lab.types import Pair
from regnet_lab.utils.text import make_file_name

METHOD_FOLDERS = {
    "respiratory": "respiratory_motion",
    "single": "single_frequency",
    "mixed": "mixed_frequency",
}


def make_method_folder(method: str) -> str:
    """Return the folder of a method, such as ``single_frequency_D2`` for ``single2``."""
    name = method.rstrip("0123456789")
    return f"{METHOD_FOLDERS.get(name, name)}_D{method.removeprefix(name) or 0}"


class RegNet2019ExportTask:
    """Write every item of :class:`regnet_lab.data.synthesis.regnet_2019.RegNet2019Pairs`.

    ``Elastix/LungExp/<case>/Result/`` holds the images that are deformed, with masks of lung and
    body: ``<type>ImageFullRS1``, ``<type>MaskFullRS1``, ``<type>TorsoFullRS1``.
    ``Elastix/Artificial_Generation/<experiment>/<data>/<type>/<case>/Dsmooth<k>/<method>_D<n>/``
    holds ``DeformedImage_<Look>``, ``DeformedLung``, ``DeformedTorso``, ``Jac_pad0`` and, written
    last, ``DeformedDVF_pad0``; ``.../Dsmooth0/DNext<k>/`` holds the image with which deformation k
    began, as ``NextIm``, ``NextLung`` and ``NextTorso``.  At stages 2 and 4 all names end in
    ``_s2`` and ``_s4``.  Images are int16 in HU, fields float32 vectors in mm.  Existing files are
    kept.

    Args:
        folder: Folder in which ``Elastix`` is created.
        experiment_name: Name of the settings, such as ``3D_max20_D14_K``.
        dataset_name: Name of the data, such as ``SPREAD``.
        image_type: Type of the images, such as ``Fixed``.
        stage: Millimetres per voxel: 1, 2 or 4.
        case_name: Name of a case; ``{}`` stands for the name of its image.
        air_hu: HU of intensity 0.
        image_suffix: Suffix of the files, ``.mha`` or ``.nii.gz``.
    """

    def __init__(
        self,
        folder: str,
        experiment_name: str,
        dataset_name: str = "SPREAD",
        image_type: str = "Fixed",
        stage: int = 1,
        case_name: str = "{}",
        air_hu: float = -1000.0,
        image_suffix: str = ".mha",
    ) -> None:
        self.folder, self.image_type = folder, image_type
        self.data_folder = (experiment_name, dataset_name, image_type)
        self.case_name, self.air_hu = case_name, air_hu
        self.image_suffix = image_suffix if stage == 1 else f"_s{stage}{image_suffix}"

    def run(self, trainer: Trainer, module: RegistrationModule, data: DataLoader[Pair]) -> None:
        """Write all files that do not exist yet."""
        dataset = data.dataset
        if isinstance(dataset, WorkerMonitor):
            dataset = dataset.dataset
        if not isinstance(dataset, RegNet2019Pairs):
            raise UserError(
                "task=export_regnet_2019 writes the artificial deformations of RegNet's second "
                "version: choose data=regnet_2019_s1, _s2 or _s4."
            )
        for index in range(len(dataset)):
            self.export_item(dataset, index)

    def export_item(self, dataset: RegNet2019Pairs, index: int) -> None:
        """Write the files of one deformation, and of the image that it deforms."""
        deformation_number, image = divmod(index, len(dataset.source_dataset))
        case = self.case_name.format(dataset.source_dataset[image]["name"])
        root = Path(self.folder) / "Elastix"
        deformed = root.joinpath("Artificial_Generation", *self.data_folder, case)
        round_number, method = divmod(deformation_number, len(dataset.deformations))
        method_folder = make_method_folder(list(dataset.deformations)[method])
        folder = deformed / f"Dsmooth{deformation_number}" / method_folder
        if (folder / f"DeformedDVF_pad0{self.image_suffix}").exists():
            return
        item = dataset.make_sample(index)
        if round_number:
            source_folder = deformed / f"Dsmooth0/DNext{deformation_number}"
            names = ["NextIm", "NextLung", "NextTorso"]
        else:
            source_folder = root / "LungExp" / make_file_name(case) / "Result"
            names = [f"{self.image_type}{part}FullRS1" for part in ("Image", "Mask", "Torso")]
        self.write_files(source_folder, self.make_masked_image_files(item.source, names, dataset))
        self.write_files(folder, self.make_deformation_images(item, dataset))

    def write_files(self, folder: Path, files: Mapping[str, sitk.Image]) -> None:
        """Write images that do not exist yet, in the given order."""
        for name, image in files.items():
            path = folder / f"{name}{self.image_suffix}"
            if not path.exists():
                write_sitk_image(path, image)

    def to_hounsfield(self, image: Tensor, dataset: RegNet2019Pairs) -> np.ndarray:
        """Convert normalized intensities to int16 HU."""
        hounsfield = (image * dataset.window_width + self.air_hu).round().clamp(-32768, 32767)
        return hounsfield.numpy().astype(np.int16)

    def make_masked_image_files(
        self, masked_image: MaskedImage, names: Sequence[str], dataset: RegNet2019Pairs
    ) -> dict[str, sitk.Image]:
        """Convert an image and its masks of lung, if known, and body to SimpleITK images."""
        arrays = {names[0]: self.to_hounsfield(masked_image.image, dataset)}
        if masked_image.lung is not None:
            arrays[names[1]] = masked_image.lung.numpy().astype(np.uint8)
        arrays[names[2]] = masked_image.body.numpy().astype(np.uint8)
        affine = make_affine(masked_image)
        return {name: coordinates.array_to_sitk(a, affine) for name, a in arrays.items()}

    def make_deformation_images(
        self, item: DeformedSample, dataset: RegNet2019Pairs
    ) -> dict[str, sitk.Image]:
        """Convert a deformation to SimpleITK images by name, the field last.

        The file of the field marks a complete deformation.
        """
        deformed = replace(item.deformed, image=item.image[0])
        look = item.intensity_model.capitalize()
        names = (f"DeformedImage_{look}", "DeformedLung", "DeformedTorso")
        determinant = ops.jacobian_determinant(item.displacement)[0].numpy().astype(np.float32)
        return {
            **self.make_masked_image_files(deformed, names, dataset),
            "Jac_pad0": coordinates.array_to_sitk(determinant, make_affine(deformed)),
            "DeformedDVF_pad0": displacement_to_sitk(item.displacement, make_affine(deformed)),
        }


def make_affine(masked_image: MaskedImage) -> coordinates.Matrix:
    """Return the RAS+ affine of a grid at the origin with LPS axes."""
    return coordinates.RAS_TO_LPS @ np.diag(
        [*masked_image.spacing, *[1.0] * (4 - len(masked_image.spacing))]
    )
