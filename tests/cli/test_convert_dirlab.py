"""Conversion of DIR-Lab's raw images and landmarks."""

import numpy as np
import pandas as pd
import pytest

from regnet_lab.cli import convert_dirlab
from regnet_lab.config.instantiate import instantiate_config
from regnet_lab.data.io.images import read_volume
from regnet_lab.errors import UserError


@pytest.fixture
def downloads(tmp_path, monkeypatch):
    """Write two small cases under the names of real ones."""
    rng = np.random.default_rng(0)
    patients = {
        "case6": convert_dirlab.DIRLabCase(
            "case6", (8, 9, 7), (1.0, 1.5, 2.5), ("T00", "T50"), "test"
        ),
        "copd1": convert_dirlab.DIRLabCase(
            "copd1", (8, 9, 7), (1.0, 1.5, 2.5), ("iBHCT", "eBHCT"), "train"
        ),
    }
    monkeypatch.setattr(convert_dirlab, "DIRLAB_CASES", patients)
    names = {
        "case6": ("Case6Pack/Images/case6_{}.img", "Case6Pack/Extreme/case6_dirLab300_{}_xyz.txt"),
        "copd1": ("copd1/copd1_{}CT.img", "copd1/copd1_300_{}_xyz_r1.txt"),
    }
    phases = {"case6": ("T00", "T50"), "copd1": ("iBH", "eBH")}
    for case, patterns in names.items():
        raw = rng.integers(0, 1500, (7, 9, 8)).astype("<i2")  # z, y, x
        raw[0] = -2000 if case == "copd1" else raw[0]
        for shift, phase in enumerate(phases[case]):
            image, text = (pattern.format(phase) for pattern in patterns)
            path = tmp_path / "raw" / image
            path.parent.mkdir(parents=True, exist_ok=True)
            raw.tofile(path)
            text_path = tmp_path / "raw" / text
            text_path.parent.mkdir(parents=True, exist_ok=True)
            text_path.write_text(f"3\t4\t{5 + shift}\n1\t1\t2\n", encoding="utf-8")
    return tmp_path


def test_landmarks_are_at_the_same_voxels_as_in_the_raw_image(downloads, composed):
    convert_dirlab.main([str(downloads / "raw"), str(downloads / "dirlab")])
    table = pd.read_csv(downloads / "dirlab/pairs.csv")
    assert table["split"].tolist() == ["test", "train"]
    for row in table.to_dict("records"):
        first = "T00.img" if row["name"] == "case6" else "iBHCT.img"
        raw = next((downloads / "raw").rglob(f"{row['name']}_{first}"))
        voxels = np.fromfile(raw, "<i2").reshape(7, 9, 8)
        volume = read_volume(downloads / "dirlab" / row["fixed"])
        points = pd.read_csv(downloads / "dirlab" / row["fixed_points"]).to_numpy().astype(int)
        for (x, y, z), (i, j, k) in zip(points, [(3, 4, 5), (1, 1, 2)], strict=True):
            assert volume.array[x, y, z] == voxels[k - 1, j - 1, i - 1] - 1024
        assert volume.array.shape == (8, 9, 7 if row["name"] == "case6" else 6)
        assert volume.array.min() >= -1024
        np.testing.assert_allclose(volume.spacing, (1.0, 1.5, 2.5))
    data = instantiate_config(
        composed("evaluate", "data=dirlab", "model=identity", f"data_root={downloads}").data
    )
    pair = data.make_dataset("test")[0]
    moved = (pair["moving_points"] - pair["fixed_points"]) * pair["spacing"]
    np.testing.assert_allclose(moved.numpy(), [[0, 0, -2.5], [0, 0, 0]], atol=1e-4)


def test_missing_and_damaged_files_are_named(downloads):
    folders = [str(downloads / "raw"), str(downloads / "dirlab")]
    path = downloads / "raw/copd1/copd1_eBHCT.img"
    content = path.read_bytes()
    path.write_bytes(content[:-2])
    with pytest.raises(UserError, match=r"copd1_eBHCT\.img: holds 503 voxels"):
        convert_dirlab.main(folders)
    path.unlink()
    with pytest.raises(UserError, match="copd1: the image of eBHCT"):
        convert_dirlab.main(folders)
    (downloads / "none").mkdir()
    with pytest.raises(UserError, match="no raw image"):
        convert_dirlab.main([str(downloads / "none"), folders[1]])
    assert len(convert_dirlab._list_cases()) == 20
