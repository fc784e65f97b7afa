import os
import pickle
import subprocess
import sys
from functools import partial

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from regnet_lab.data.case import Case, Points
from regnet_lab.data.io.cases import identity
from regnet_lab.data.preprocessing import cache as cache_module
from regnet_lab.data.preprocessing.cache import (
    FolderCache,
    MemoryCache,
    Uncached,
    content,
    fingerprint,
)
from regnet_lab.data.preprocessing.functional import min_max, percentile_range, window
from regnet_lab.data.preprocessing.grids import CentredGrid, WorldGrid
from regnet_lab.errors import UserError
from regnet_lab.spatial import coordinates
from tests.helpers import ROOT


def arrays_of(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "": rng.normal(size=(1, 7, 8, 9)).astype(np.float32),
        "_labels": rng.integers(0, 9, (1, 7, 8, 9)).astype(np.int16),
        "_points": rng.normal(size=(3, 3)).astype(np.float32),
        "spacing": np.array([1, 2, 3], np.float64),
    }


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


class Made:
    """Counts how often it is asked to make something."""

    def __init__(self, seed=0):
        self.seed, self.times = seed, 0

    def __call__(self):
        self.times += 1
        return arrays_of(self.seed)


@pytest.mark.parametrize("kind", ["memory", "folder"])
def test_an_entry_is_made_once(tmp_path, kind):
    cache = MemoryCache(100) if kind == "memory" else FolderCache(tmp_path)
    made = Made()
    for _ in range(3):
        assert_same(cache.get("a", made), arrays_of())
    assert_same(cache.get("b", partial(arrays_of, 1)), arrays_of(1))
    assert_same(cache.get("a", made), arrays_of())
    assert made.times == 1


def test_without_a_cache_everything_is_made_again():
    made = Made()
    assert_same(Uncached().get("a", made), arrays_of())
    Uncached().get("a", made)
    assert made.times == 2


def test_a_folder_is_shared_and_its_entries_are_mapped_read_only(tmp_path):
    FolderCache(tmp_path).get("a", arrays_of)
    again = FolderCache(tmp_path).get("a", pytest.fail)
    assert_same(again, arrays_of())
    assert isinstance(again[""].base, np.memmap) or isinstance(again[""], np.memmap)
    assert not again[""].flags.writeable
    assert [path.name for path in tmp_path.iterdir()] == ["a.arrays"]


def truncated(data):
    return data[: len(data) // 2]


def changed(data):
    place = len(data) - 5000
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


DAMAGES = {
    "truncated": truncated,
    "empty": lambda data: b"",
    "one bit": changed,
    "text": lambda data: b"no cache entry " * 99,
    "header": lambda data: data[:30] + b"}" + data[31:],
    "a foreign type": lambda data: data.replace(b'"<f4"', b'"|O4"', 1),
    "longer": lambda data: data + bytes(64),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_entry_is_made_again(tmp_path, damage):
    FolderCache(tmp_path).get("a", arrays_of)
    path = tmp_path / "a.arrays"
    sound = path.read_bytes()
    path.write_bytes(DAMAGES[damage](sound))
    assert path.read_bytes() != sound
    made = Made()
    assert_same(FolderCache(tmp_path).get("a", made), arrays_of())
    assert made.times == 1
    assert path.read_bytes() == sound


def test_an_entry_damaged_while_in_use_is_made_again(tmp_path):
    cache = FolderCache(tmp_path)
    cache.get("a", arrays_of)
    cache.get("a", pytest.fail)
    path = tmp_path / "a.arrays"
    path.write_bytes(changed(path.read_bytes()))
    os.utime(path, ns=(1, 1))
    assert_same(cache.get("a", arrays_of), arrays_of())


def test_a_writer_that_dies_leaves_nothing_behind(tmp_path, monkeypatch):
    cache = FolderCache(tmp_path)

    def die(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(cache_module.os, "fsync", die)
    with pytest.raises(KeyboardInterrupt):
        cache.get("a", arrays_of)
    assert not list(tmp_path.iterdir())


FILL = """
import sys, time
import numpy as np
from regnet_lab.data.cache import FolderCache

def make():
    time.sleep(0.003)
    return {"": np.arange(5000) + number}

cache = FolderCache(sys.argv[1])
sys.stdin.read()
for number in range(60):
    assert (cache.get(f"{number}", make)[""] == np.arange(5000) + number).all()
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
        kept = FolderCache(tmp_path).get(f"{number}", pytest.fail)
        np.testing.assert_array_equal(kept[""], np.arange(5000) + number)


def test_memory_is_bounded_and_the_oldest_entry_goes_first():
    size = sum(array.nbytes for array in arrays_of().values())
    cache, made = MemoryCache(2.5 * size / 1e6), {key: Made() for key in "abc"}
    for key in "abaca":
        cache.get(key, made[key])
    assert cache.used == 2 * size
    assert list(cache.entries) == ["c", "a"]
    cache.get("b", made["b"])
    assert {key: made[key].times for key in "abc"} == {"a": 1, "b": 2, "c": 1}


def test_an_entry_beyond_the_bound_is_used_and_not_kept():
    cache = MemoryCache(1e-6)
    assert_same(cache.get("a", arrays_of), arrays_of())
    assert cache.used == 0
    assert not cache.entries


def test_memory_does_not_travel_to_another_process():
    cache = MemoryCache(100)
    cache.get("a", arrays_of)
    copy = pickle.loads(pickle.dumps(cache))
    assert copy.megabytes == 100
    assert not copy.entries


def test_a_full_disk_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(cache_module, "SPARE", 2**70)
    assert_same(FolderCache(tmp_path).get("a", arrays_of), arrays_of())
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cache=.*file: cannot write there"):
        FolderCache(tmp_path / "file")


def test_settings_tell_entries_apart():
    settings = [
        (1,),
        ("1",),
        (1, None),
        ([1, 2], 3),
        ([1], 2, 3),
        ({1: 2},),
        (percentile_range,),
        (min_max,),
        (partial(window, low=0, high=1),),
        (partial(window, low=0, high=2),),
        (lambda x: x,),
        (lambda x: x + x,),
    ]
    assert len({fingerprint(*parts) for parts in settings}) == len(settings)
    assert fingerprint(partial(window, low=0)) == fingerprint(partial(window, low=0))


def image_file(path, seed=0, shape=(6, 7)):
    array = np.random.default_rng(seed).uniform(size=shape).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), path)
    return path


def test_the_hash_of_a_file_follows_its_bytes(tmp_path):
    path = image_file(tmp_path / "a.nii")
    before = content(path)
    image_file(path, seed=1)
    os.utime(path, ns=(5, 5))
    changed = content(path)
    image_file(path)
    os.utime(path, ns=(7, 7))
    assert content(path) == before != changed
    with pytest.raises(UserError, match=r"b\.nii: this file is missing"):
        content(tmp_path / "b.nii")


def test_a_detached_header_stands_for_its_voxels_too(tmp_path):
    case = Case("a", tmp_path / "a.mhd")
    sitk.WriteImage(coordinates.to_image(arrays_of()[""][0], np.eye(4)), str(case.image))
    before = identity(case)
    raw = tmp_path / "a.raw"
    raw.write_bytes(bytes(reversed(raw.read_bytes())))
    os.utime(raw, ns=(5, 5))
    assert identity(case) != before


def test_a_case_is_known_by_what_it_says_and_not_by_its_name(tmp_path):
    image = image_file(tmp_path / "a.nii")
    other = image_file(tmp_path / "b.nii", seed=1)
    copy = image_file(tmp_path / "copy.nii")
    table = tmp_path / "p.csv"
    table.write_text("1,2\n")
    cases = [
        Case("a", image),
        Case("a", other),
        Case("a", image, labels=other),
        Case("a", image, mask=other),
        Case("a", image, phase=0),
        Case("a", image, slice=0),
        Case("a", image, slice=0.0),
        Case("a", image, points=Points(table, (0, 1))),
        Case("a", image, points=Points(table, (1, 0))),
        Case("a", image, points=Points(table, (0, 1), "ras")),
        Case("a", image, points=Points(table, (0, 1), scale=2)),
    ]
    assert len({identity(case) for case in cases}) == len(cases)
    assert identity(Case("b", copy)) == identity(cases[0])


def entries(folder):
    return {path.name for path in folder.iterdir()}


def test_a_changed_file_or_setting_is_another_entry(tmp_path):
    kept = tmp_path / "cache"
    case = Case("a", image_file(tmp_path / "a.nii"))
    options = {"shape": (6, 6), "cache": str(kept)}
    first = CentredGrid(**options)(case, case)["fixed"]
    assert len(entries(kept)) == 1
    for number, more in enumerate(
        [{"shape": (5, 5)}, {"spacing": 2.0}, {"labels": [1]}, {"intensity": min_max}], start=2
    ):
        CentredGrid(**{**options, **more})(case, case)
        assert len(entries(kept)) == number
    before = entries(kept)
    CentredGrid(**options)(case, case)
    assert entries(kept) == before
    image_file(case.image, seed=3)
    os.utime(case.image, ns=(5, 5))
    assert not np.array_equal(CentredGrid(**options)(case, case)["fixed"], first)
    assert len(entries(kept)) == len(before) + 1


def test_a_world_grid_keeps_the_moving_side_for_each_fixed_one(tmp_path):
    kept = tmp_path / "cache"
    a, b, c = (Case(n, image_file(tmp_path / f"{n}.nii", i)) for i, n in enumerate("abc"))
    prepare = WorldGrid(cache=str(kept))
    prepare(a, b)
    assert len(entries(kept)) == 4  # two decoded files, fixed a, b on a's grid
    prepare(c, b)
    assert len(entries(kept)) == 7
    prepare(a, b)
    prepare(a, c)
    assert len(entries(kept)) == 8


def test_a_cine_is_decoded_once_for_all_its_phases(tmp_path, monkeypatch):
    from regnet_lab.data.preprocessing import grids

    path, times = image_file(tmp_path / "cine.nii.gz", shape=(6, 7, 3, 4)), []

    def counted(file):
        times.append(file)
        return grids_decode(file)

    grids_decode = grids.decode
    monkeypatch.setattr(grids, "decode", counted)
    prepare = CentredGrid((6, 7))
    for phase in range(4):
        case = Case(f"{phase}", path, phase=phase, slice=1)
        prepare(case, case)
    assert times == [path]
