"""Results are written completely or not at all."""

from pathlib import Path

import numpy as np
import pytest

from regnet_lab.errors import UserError
from regnet_lab.registration.output import atomic_directory
from regnet_lab.spatial import Deformation, write_transforms
from regnet_lab.spatial.image_grid import ImageGrid
from regnet_lab.spatial.writers import write_image
from tests.helpers.registration import limit_file_size


def test_results_can_be_written_to_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with atomic_directory(Path(".")) as temporary:
        (temporary / "u.txt").write_text("1", encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["u.txt"]


def test_a_failed_block_leaves_the_folder_as_it_was(tmp_path):
    folder = tmp_path / "a" / "b"

    def fill():
        with atomic_directory(folder) as temporary:
            (temporary / "half").write_text("x", encoding="utf-8")
            raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match=r"No space left.*make room"):
        fill()
    assert not list(tmp_path.iterdir())
    folder.mkdir(parents=True)
    (folder / "kept").write_text("old", encoding="utf-8")
    with atomic_directory(folder) as temporary:
        (temporary / "new").write_text("x", encoding="utf-8")
    assert {path.name for path in folder.iterdir()} == {"kept", "new"}
    assert [path.name for path in folder.parent.iterdir()] == ["b"]


@pytest.mark.parametrize(
    "kind", ["itk", "field", "ants", "fsl", "learn2reg", ".nii.gz", ".nrrd", ".mha"]
)
def test_every_writer_reports_a_full_disk_and_prints_nothing(kind, tmp_path, capfd):
    grid = ImageGrid((20, 17, 18), np.eye(4))
    noise = np.random.default_rng(0).normal(size=(3, *grid.shape)).astype(np.float32) / 5
    deformation = Deformation(grid, grid, np.eye(4), noise)
    assert deformation.inverse_u.shape == noise.shape  # before the disk is full

    def write(temporary):
        if kind.startswith("."):
            write_image(temporary / f"warped{kind}", noise[0], grid.affine)
        else:
            write_transforms(temporary, deformation, [kind])

    def write_all():
        with atomic_directory(tmp_path / "out") as temporary:
            write(temporary)

    with limit_file_size(10_000), pytest.raises(UserError, match="cannot be written") as caught:
        write_all()
    assert "0x" not in str(caught.value)
    assert not list(tmp_path.iterdir())
    assert not capfd.readouterr().err
