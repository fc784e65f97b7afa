import importlib
import os
import pickle
import subprocess
import sys
from functools import partial
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from safetensors.numpy import save

from regnet_lab.data.case import Case, LandmarkFile
from regnet_lab.data.datasets.histology import PixelCropOrPad
from regnet_lab.data.io.cases import fingerprint_case
from regnet_lab.data.preprocessing import cache as cache_module
from regnet_lab.data.preprocessing import grids
from regnet_lab.data.preprocessing.cache import (
    FolderCache,
    MemoryCache,
    NoCache,
    compute_fingerprint,
    hash_file,
    hash_sources,
)
from regnet_lab.data.preprocessing.functional import (
    normalize_min_max,
    normalize_percentiles,
    normalize_window,
)
from regnet_lab.data.preprocessing.grids import CropOrPad, ResampleToFixed, Resize
from regnet_lab.errors import UserError
from regnet_lab.spatial import coordinates
from tests.helpers import ROOT


def arrays_of(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.normal(size=(1, 7, 8, 9)).astype(np.float32),
        "labels": rng.integers(0, 9, (1, 7, 8, 9)).astype(np.int16),
        "points": rng.normal(size=(3, 3)).astype(np.float32),
        "spacing": np.array([1, 2, 3], np.float64),
    }


def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    for name, array in expected.items():
        assert actual[name].dtype == array.dtype
        np.testing.assert_array_equal(actual[name], array)


class Made:
    """Counts how often it is asked to make something."""

    def __init__(self, seed=0):
        self.seed, self.times = seed, 0

    def __call__(self):
        self.times += 1
        return arrays_of(self.seed)


@pytest.mark.parametrize("kind", ["memory", "folder"])
def test_an_entry_is_created_once(tmp_path, kind):
    cache = MemoryCache(100) if kind == "memory" else FolderCache(tmp_path)
    made = Made()
    for _ in range(3):
        assert_same(cache.get_or_create("a", made), arrays_of())
    assert_same(cache.get_or_create("b", partial(arrays_of, 1)), arrays_of(1))
    assert_same(cache.get_or_create("a", made), arrays_of())
    assert made.times == 1


def test_without_a_cache_everything_is_created_again():
    made = Made()
    assert_same(NoCache().get_or_create("a", made), arrays_of())
    NoCache().get_or_create("a", made)
    assert made.times == 2


def test_a_folder_is_shared_and_its_entries_are_mapped_read_only(tmp_path):
    FolderCache(tmp_path).get_or_create("a", arrays_of)
    again = FolderCache(tmp_path).get_or_create("a", pytest.fail)
    assert_same(again, arrays_of())
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
    assert str(tmp_path / "a.safetensors") in Path("/proc/self/maps").read_text()
    assert not any(array.flags.writeable for array in again.values())


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=">i2").reshape(2, 3),
        np.eye(4)[:, ::-1],
        np.asfortranarray(np.arange(6.0, dtype=np.float32).reshape(2, 3)),
        np.arange(3, dtype=np.uint16),
        np.arange(3, dtype=np.uint32),
        np.array([True, False]),
        np.zeros((0, 3), np.float32),
        np.float64(2.5).reshape(()),
    ],
    ids=["big-endian", "reversed", "Fortran order", "uint16", "uint32", "bool", "empty", "0-d"],
)
def test_arrays_of_every_type_and_layout_are_restored(array, tmp_path):
    FolderCache(tmp_path).get_or_create("a", lambda: {"x": array, "y": np.arange(5)})
    again = FolderCache(tmp_path).get_or_create("a", pytest.fail)
    assert again["x"].dtype == array.dtype.newbyteorder("=")
    assert again["x"].shape == array.shape
    np.testing.assert_array_equal(again["x"], array)


def truncate(data):
    return data[: len(data) // 2]


def flip_bit(data):
    position = len(data) - 1500
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


DAMAGES = {
    "truncated": truncate,
    "empty": lambda data: b"",
    "one bit": flip_bit,
    "text": lambda data: b"no cache entry " * 99,
    "header": lambda data: data[:30] + b"}" + data[31:],
    "another shape": lambda data: data.replace(b"[1,7,8,9]", b"[1,9,8,7]", 1),
    "another type": lambda data: data.replace(b'"F32"', b'"I32"', 1),
    "a foreign type": lambda data: data.replace(b'"F32"', b'"O32"', 1),
    "a foreign file": lambda data: save(arrays_of()),
    "longer": lambda data: data + bytes(64),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_entry_is_created_again(tmp_path, damage):
    FolderCache(tmp_path).get_or_create("a", arrays_of)
    path = tmp_path / "a.safetensors"
    sound = path.read_bytes()
    path.write_bytes(DAMAGES[damage](sound))
    assert path.read_bytes() != sound
    made = Made()
    assert_same(FolderCache(tmp_path).get_or_create("a", made), arrays_of())
    assert made.times == 1
    assert path.read_bytes() == sound


def test_an_entry_damaged_while_in_use_is_created_again(tmp_path):
    cache = FolderCache(tmp_path)
    cache.get_or_create("a", arrays_of)
    cache.get_or_create("a", pytest.fail)
    path = tmp_path / "a.safetensors"
    path.write_bytes(flip_bit(path.read_bytes()))
    os.utime(path, ns=(1, 1))
    assert_same(cache.get_or_create("a", arrays_of), arrays_of())


def test_a_writer_that_dies_leaves_nothing_behind(tmp_path, monkeypatch):
    cache = FolderCache(tmp_path)

    def die(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", die)
    with pytest.raises(KeyboardInterrupt):
        cache.get_or_create("a", arrays_of)
    assert not list(tmp_path.iterdir())


FILL = """
import sys, time
import numpy as np
from regnet_lab.data.preprocessing.cache import FolderCache

def make():
    time.sleep(0.003)
    return {"image": np.arange(5000) + number}

cache = FolderCache(sys.argv[1])
sys.stdin.read()
for number in range(60):
    assert (cache.get_or_create(f"{number}", make)["image"] == np.arange(5000) + number).all()
"""


def test_two_processes_fill_one_folder_together(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    fillers = [
        subprocess.Popen(
            [sys.executable, "-c", FILL, tmp_path], stdin=subprocess.PIPE, env=environment
        )
        for _ in range(2)
    ]
    for filler in fillers:
        filler.stdin.close()
    assert [filler.wait(120) for filler in fillers] == [0, 0]
    assert len(list(tmp_path.iterdir())) == 60
    for number in range(60):
        cached = FolderCache(tmp_path).get_or_create(f"{number}", pytest.fail)
        np.testing.assert_array_equal(cached["image"], np.arange(5000) + number)


def test_memory_is_limited_and_the_least_recent_entry_is_dropped():
    size = sum(array.nbytes for array in arrays_of().values())
    cache, made = MemoryCache(2.5 * size / 1e6), {key: Made() for key in "abc"}
    for key in "abaca":
        cache.get_or_create(key, made[key])
    assert cache.used == 2 * size
    assert list(cache.entries) == ["c", "a"]
    cache.get_or_create("b", made["b"])
    assert {key: made[key].times for key in "abc"} == {"a": 1, "b": 2, "c": 1}


def test_an_entry_beyond_the_limit_is_used_and_not_stored():
    cache = MemoryCache(1e-6)
    assert_same(cache.get_or_create("a", arrays_of), arrays_of())
    assert cache.used == 0
    assert not cache.entries


def test_a_memory_cache_is_pickled_without_entries():
    cache = MemoryCache(100)
    cache.get_or_create("a", arrays_of)
    copy = pickle.loads(pickle.dumps(cache))
    assert copy.megabytes == 100
    assert not copy.entries


def test_nothing_is_stored_on_a_nearly_full_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(cache_module, "MIN_FREE_BYTES", 2**70)
    assert_same(FolderCache(tmp_path).get_or_create("a", arrays_of), arrays_of())
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cache=.*file: cannot write there"):
        FolderCache(tmp_path / "file")


def make_scaling(factor):
    return lambda x: factor * x


def test_a_changed_constant_of_a_module_changes_the_fingerprint(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    fingerprints = set()
    for constant in (1, 2):
        (tmp_path / "changing.py").write_text(
            f"LIMIT = {constant}\n\ndef clip(x):\n    return LIMIT"
        )
        importlib.invalidate_caches()
        sys.modules.pop("changing", None)
        fingerprints.add(compute_fingerprint(importlib.import_module("changing").clip))
        os.utime(tmp_path / "changing.py", ns=(constant, constant))
    assert len(fingerprints) == 2


def test_fingerprints_are_the_same_in_every_process():
    command = (
        "from functools import partial\n"
        "from regnet_lab.data.preprocessing.cache import compute_fingerprint, hash_sources\n"
        "from regnet_lab.data.preprocessing.functional import normalize_window\n"
        "print(compute_fingerprint(hash_sources(), partial(normalize_window, low=0)))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", command],
            capture_output=True,
            check=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }
    own = compute_fingerprint(hash_sources(), partial(normalize_window, low=0))
    assert outputs == {f"{own}\n".encode()}


def test_different_settings_have_different_fingerprints():
    settings = [
        (1,),
        ("1",),
        (1, None),
        ([1, 2], 3),
        ([1], 2, 3),
        ({1: 2},),
        (normalize_percentiles,),
        (normalize_min_max,),
        (partial(normalize_window, low=0, high=1),),
        (partial(normalize_window, low=0, high=2),),
        (lambda x: x,),
        (lambda x: x + x,),
        (lambda x: x + 2,),
        (lambda x: x + 3,),
        (lambda x=2: x,),
        *[(make_scaling(factor),) for factor in (2, 3)],
    ]
    assert len({compute_fingerprint(*parts) for parts in settings}) == len(settings)
    assert compute_fingerprint(partial(normalize_window, low=0)) == compute_fingerprint(
        partial(normalize_window, low=0)
    )


def image_file(path, seed=0, shape=(6, 7)):
    array = np.random.default_rng(seed).uniform(size=shape).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), path)
    return path


def test_the_hash_of_a_file_follows_its_bytes(tmp_path):
    path = image_file(tmp_path / "a.nii")
    before = hash_file(path)
    image_file(path, seed=1)
    os.utime(path, ns=(5, 5))
    changed = hash_file(path)
    image_file(path)
    os.utime(path, ns=(7, 7))
    assert hash_file(path) == before != changed
    with pytest.raises(UserError, match=r"b\.nii: this file is missing"):
        hash_file(tmp_path / "b.nii")


def test_a_detached_header_stands_for_its_voxels_too(tmp_path):
    case = Case("a", tmp_path / "a.mhd")
    sitk.WriteImage(coordinates.array_to_sitk(arrays_of()["image"][0], np.eye(4)), str(case.image))
    before = fingerprint_case(case)
    raw = tmp_path / "a.raw"
    raw.write_bytes(bytes(reversed(raw.read_bytes())))
    os.utime(raw, ns=(5, 5))
    assert fingerprint_case(case) != before


def test_the_fingerprint_of_a_case_depends_on_its_files_and_not_on_its_name(tmp_path):
    image = image_file(tmp_path / "a.nii")
    second_image = image_file(tmp_path / "b.nii", seed=1)
    copy = image_file(tmp_path / "copy.nii")
    table = tmp_path / "p.csv"
    table.write_text("1,2\n")
    cases = [
        Case("a", image),
        Case("a", second_image),
        Case("a", image, labels=second_image),
        Case("a", image, mask=second_image),
        Case("a", image, phase=0),
        Case("a", image, slice=0),
        Case("a", image, slice=0.0),
        Case("a", image, points=LandmarkFile(table, (0, 1))),
        Case("a", image, points=LandmarkFile(table, (1, 0))),
        Case("a", image, points=LandmarkFile(table, (0, 1), "ras")),
        Case("a", image, points=LandmarkFile(table, (0, 1), scale=2)),
    ]
    assert len({fingerprint_case(case) for case in cases}) == len(cases)
    assert fingerprint_case(Case("b", copy)) == fingerprint_case(cases[0])


def entries(folder):
    return {path.name for path in folder.iterdir()}


def test_a_changed_file_or_setting_is_another_entry(tmp_path):
    cache_folder = tmp_path / "cache"
    case = Case("a", image_file(tmp_path / "a.nii"))
    options = {"shape": (6, 6), "cache": str(cache_folder)}
    first = CropOrPad(**options)(case, case)["fixed"]
    assert len(entries(cache_folder)) == 1
    for number, more in enumerate(
        [{"shape": (5, 5)}, {"spacing": 2.0}, {"labels": [1]}, {"intensity": normalize_min_max}],
        start=2,
    ):
        CropOrPad(**{**options, **more})(case, case)
        assert len(entries(cache_folder)) == number
    before = entries(cache_folder)
    CropOrPad(**options)(case, case)
    assert entries(cache_folder) == before
    image_file(case.image, seed=3)
    os.utime(case.image, ns=(5, 5))
    assert not np.array_equal(CropOrPad(**options)(case, case)["fixed"], first)
    assert len(entries(cache_folder)) == len(before) + 1


def test_resample_to_fixed_caches_the_moving_side_for_each_fixed_image(tmp_path):
    cache_folder = tmp_path / "cache"
    a, b, c = (Case(n, image_file(tmp_path / f"{n}.nii", i)) for i, n in enumerate("abc"))
    prepare = ResampleToFixed(cache=str(cache_folder))
    prepare(a, b)
    assert len(entries(cache_folder)) == 4  # two decoded files, fixed a, b on a's grid
    prepare(c, b)
    assert len(entries(cache_folder)) == 7
    prepare(a, b)
    prepare(a, c)
    assert len(entries(cache_folder)) == 8


@pytest.fixture
def decoded(monkeypatch):
    """The names of the files that are decoded."""
    names = []

    def count(path):
        names.append(path.name)
        return decode(path)

    decode = grids.decode_image
    monkeypatch.setattr(grids, "decode_image", count)
    return names


def test_a_cine_is_decoded_once_for_all_its_phases(tmp_path, decoded):
    path = image_file(tmp_path / "cine.nii.gz", shape=(6, 7, 3, 4))
    prepare = CropOrPad((6, 7))
    for phase in range(4):
        case = Case(f"{phase}", path, phase=phase, slice=1)
        prepare(case, case)
    assert decoded == ["cine.nii.gz"]


def labelled_case(folder, name, seed):
    labels = (np.random.default_rng(seed).uniform(size=(6, 7)) * 3).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(labels, np.eye(4)), folder / f"{name}-labels.nii")
    image = image_file(folder / f"{name}.nii", seed)
    return Case(name, image, folder / f"{name}-labels.nii", folder / f"{name}-labels.nii")


@pytest.mark.parametrize("cache", ["memory", "folder", None])
@pytest.mark.parametrize(
    ("preprocessor", "options"),
    [
        (CropOrPad, {"shape": (6, 6)}),
        (CropOrPad, {"shape": (6, 6), "shared_range": True}),
        (Resize, {"shape": (5, 5)}),
        (ResampleToFixed, {}),
        (PixelCropOrPad, {"shape": (6, 6)}),
    ],
)
def test_each_file_of_a_pair_is_decoded_once(preprocessor, options, cache, tmp_path, decoded):
    fixed, moving = (labelled_case(tmp_path, name, n) for n, name in enumerate("fm"))
    files = ["f-labels.nii", "f.nii", "m-labels.nii", "m.nii"]
    cache = str(tmp_path / "cache") if cache == "folder" else cache
    prepare = preprocessor(**options, cache=cache)
    cold = prepare(fixed, moving)
    assert sorted(decoded) == files
    warm = prepare(fixed, moving)
    assert sorted(decoded) == (files if cache else sorted(2 * files))
    assert all(torch.equal(cold[k], warm[k]) for k in cold if k != "name")


@pytest.mark.parametrize("options", [{}, {"shared_range": True}])
def test_the_moving_side_of_a_cached_fixed_image_decodes_only_what_it_needs(
    options, tmp_path, decoded
):
    a, b = (labelled_case(tmp_path, name, n) for n, name in enumerate("ab"))
    prepare = CropOrPad((6, 6), **options)
    prepare(a, a)
    decoded.clear()
    prepare(a, b)
    needed = ["a-labels.nii", "a.nii"] if options else []
    assert sorted(decoded) == [*needed, "b-labels.nii", "b.nii"]


def test_two_phases_of_one_file_are_decoded_once_without_a_cache(tmp_path, decoded):
    path = image_file(tmp_path / "cine.nii.gz", shape=(6, 7, 3, 4))
    fixed, moving = (Case(f"{phase}", path, phase=phase) for phase in (0, 2))
    CropOrPad((6, 7, 3), cache=None)(fixed, moving)
    assert decoded == ["cine.nii.gz"]
