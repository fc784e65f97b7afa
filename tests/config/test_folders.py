"""Output folders: one run at a time, no run in the folder of another, none left empty."""

import multiprocessing

import pytest
from omegaconf import OmegaConf

from regnet_lab.config.folders import (
    claim_output_dir,
    lock_folder,
    refuse_links,
    require_no_other_run,
)
from regnet_lab.errors import UserError


def hold_lock(folder, ready, done):
    with lock_folder(folder):
        ready.set()
        done.wait(30)


def test_a_folder_in_use_by_another_process_is_refused(tmp_path):
    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()
    process = context.Process(target=hold_lock, args=(tmp_path, ready, done))
    process.start()
    assert ready.wait(30)
    with pytest.raises(UserError, match="in use by another"), lock_folder(tmp_path):
        pass
    done.set()
    process.join()
    with lock_folder(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["config.yaml", "checkpoints/last.ckpt"])
def test_the_folder_of_another_run_is_refused_or_emptied(name, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / name).touch()
    (tmp_path / "notes.txt").touch()
    if "/" not in name:
        (tmp_path / "checkpoints").rmdir()
    with pytest.raises(UserError, match=r"resume=.*overwrite=true"):
        require_no_other_run(str(tmp_path), overwrite=False)
    require_no_other_run(str(tmp_path), overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_an_empty_or_missing_folder_is_free(tmp_path):
    require_no_other_run(str(tmp_path), overwrite=False)
    require_no_other_run(str(tmp_path / "new"), overwrite=False)


@pytest.mark.parametrize("result", [None, "table.csv"])
def test_a_failed_command_leaves_no_folder_without_results(result, tmp_path):
    folder = tmp_path / "data-model" / "run"

    def fail():
        with claim_output_dir(OmegaConf.create({"output_dir": str(folder)}), "train.log"):
            (folder / "train.log").touch()
            if result:
                (folder / result).touch()
            raise ValueError("fault")

    with pytest.raises(ValueError, match="fault"):
        fail()
    left = sorted(path.name for path in tmp_path.rglob("*") if path.is_file())
    assert left == ([result, "train.log"] if result else [])
    assert folder.exists() == bool(result)


def test_a_missing_output_dir_is_refused():
    with (
        pytest.raises(UserError, match="output_dir must name a folder"),
        claim_output_dir(OmegaConf.create({"output_dir": None}), "train.log"),
    ):
        pass


@pytest.mark.parametrize("place", ["evaluation", "checkpoints/best.ckpt", "evaluate.log"])
def test_a_run_folder_with_a_link_is_refused(place, tmp_path):
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    refuse_links(run)
    (run / place).symlink_to(tmp_path / "victim")
    with pytest.raises(UserError, match=f"{place} is a symbolic link"):
        refuse_links(run)
