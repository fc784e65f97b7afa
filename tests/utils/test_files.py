"""Pipes and folders given as files are refused at once."""

import os

import pytest

from regnet_lab.data.io.images import decode_image
from regnet_lab.data.io.tables import read_table
from regnet_lab.data.preprocessing.cache import hash_file
from regnet_lab.errors import UserError
from regnet_lab.spatial import read_transform

READERS = {
    "a.nii.gz": decode_image,
    "a.csv": lambda path: read_table(path, ()),
    "a.h5": lambda path: read_transform(path, None, None),
    "a.mha": hash_file,
}


@pytest.mark.parametrize("name", READERS)
def test_a_pipe_is_refused_without_waiting(name, tmp_path):
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match=f"{name}: is a folder, a pipe or a device"):
        READERS[name](tmp_path / name)


@pytest.mark.parametrize("name", READERS)
def test_a_missing_file_is_named(name, tmp_path):
    with pytest.raises(UserError, match=f"{name}: this file is missing"):
        READERS[name](tmp_path / name)
