"""The jobs of ``evaluate.py -m`` and ``train.py -m`` as one report, written anew when a job ends.

Imports nothing heavy: Hydra loads this file with every command.
"""

from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf


def reason(job_return: JobReturn) -> str | None:
    """Why a job failed; None if it did not."""
    if job_return.status == JobStatus.COMPLETED:
        return None
    return " ".join(str(job_return._return_value).split())


class Collect(Callback):
    """Note in the folder of every job what it judged, and gather all jobs so far.

    A job that failed is listed with its reason; the others are not lost.

    Args:
        against: Key of the runs' configuration that becomes the horizontal axis of a curve, such
            as ``data.fraction``; null: no curve.
    """

    def __init__(self, against: str | None = None) -> None:
        self.against = against

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        if config.hydra.mode != RunMode.MULTIRUN:
            return
        from regnet_lab.evaluation.multirun import gather, note

        choices = config.hydra.runtime.choices
        job = {
            "run": config.run and str(config.run),
            "model": choices.get("model"),
            "data": choices.get("data") or "same",
            "overrides": list(config.hydra.overrides.task),
            "folder": str(OmegaConf.select(config, "folder")),
            "error": reason(job_return),
        }
        note(Path(config.hydra.runtime.output_dir), job)
        gather(Path(config.hydra.sweep.dir), self.against)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        from rich.console import Console

        folder = Path(config.hydra.sweep.dir)
        text = (folder / "summary.md").read_text(encoding="utf-8")
        Console().print(text, markup=False, highlight=False, soft_wrap=True)
        Console().print(f"Tables and pictures: {folder}", markup=False, soft_wrap=True)


class CollectRuns(Callback):
    """Note in the folder of every job what it was to do, and gather all jobs so far.

    ``sweep.csv``, ``sweep.md`` and, as parallel coordinates, ``sweep.png``.
    """

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        if config.hydra.mode != RunMode.MULTIRUN:
            return
        from regnet_lab.evaluation import sweep
        from regnet_lab.evaluation.multirun import note

        job = {"overrides": list(config.hydra.overrides.task), "error": reason(job_return)}
        note(Path(config.hydra.runtime.output_dir), job)
        sweep.write(Path(config.hydra.sweep.dir), config.monitor_mode)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        from rich.console import Console

        folder = Path(config.hydra.sweep.dir)
        if (folder / "sweep.md").is_file():
            text = (folder / "sweep.md").read_text(encoding="utf-8")
            Console().print(text, markup=False, highlight=False, soft_wrap=True)
            Console().print(f"Table and picture: {folder}", markup=False, soft_wrap=True)
