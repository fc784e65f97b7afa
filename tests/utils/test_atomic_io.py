"""Files are written completely or not at all."""

import os

import pytest

from regnet_lab.errors import UserError
from regnet_lab.utils import atomic_io


def test_failed_write_keeps_the_previous_file(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    atomic_io.write_text(path, "first ± 1\n")

    def raise_disk_full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", raise_disk_full)
    with pytest.raises(UserError, match=r"a\.txt cannot be written \(No space left"):
        atomic_io.write_text(path, "second")
    assert path.read_text(encoding="utf-8") == "first ± 1\n"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_error_names_the_path_if_the_folder_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/a\.txt"):
        atomic_io.write_text(tmp_path / "file" / "a.txt", "text")
