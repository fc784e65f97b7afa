"""The jobs of ``evaluate.py -m`` and ``train.py -m`` as one report, written anew when a job ends.

Imports nothing heavy: Hydra loads this file with every command.
"""

from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from regnet_lab.config.overrides import remove_quotes


def get_failure_reason(job_return: JobReturn) -> str | None:
    """Return why a job failed, or None if it completed."""
    if job_return.status == JobStatus.COMPLETED:
        return None
    return " ".join(str(job_return._return_value).split())


def print_table(folder: Path, name: str, files: str) -> None:
    """Print the table of a multirun, which is there once a job has ended, and its folder."""
    from rich.console import Console

    if (folder / name).is_file():
        text = (folder / name).read_text(encoding="utf-8")
        Console().print(text, markup=False, highlight=False, soft_wrap=True)
        Console().print(f"{files}: {folder}", markup=False, soft_wrap=True)


class CollectEvaluations(Callback):
    """Record each evaluation of a multirun, and update the summary of all jobs after each of them.

    A failed job is listed with its reason; the results of the others are kept.

    Args:
        x_axis: Key of the runs' configuration that becomes the horizontal axis of a curve, such
            as ``data.fraction``; null: no curve.
    """

    def __init__(self, x_axis: str | None = None) -> None:
        self.x_axis = x_axis

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        if config.hydra.mode != RunMode.MULTIRUN:
            return
        from regnet_lab.evaluation.multirun import write_job, write_multirun_report

        choices = config.hydra.runtime.choices
        job = {
            "run": config.run and str(config.run),
            "model": choices.get("model"),
            "data": config.data_name,
            "overrides": list(map(remove_quotes, config.hydra.overrides.task)),
            "folder": str(OmegaConf.select(config, "output_dir")),
            "error": get_failure_reason(job_return),
        }
        write_job(Path(config.hydra.runtime.output_dir), job)
        write_multirun_report(Path(config.hydra.sweep.dir), self.x_axis)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        print_table(Path(config.hydra.sweep.dir), "summary.md", "Tables and figures")


class CollectRuns(Callback):
    """Record each job of a sweep, and update ``sweep.csv``, ``sweep.md`` and ``sweep.png``."""

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        if config.hydra.mode != RunMode.MULTIRUN:
            return
        from regnet_lab.evaluation import sweep
        from regnet_lab.evaluation.multirun import write_job

        job = {
            "overrides": list(map(remove_quotes, config.hydra.overrides.task)),
            "error": get_failure_reason(job_return),
        }
        write_job(Path(config.hydra.runtime.output_dir), job)
        sweep.write_sweep_report(Path(config.hydra.sweep.dir), config.monitor_mode)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        print_table(Path(config.hydra.sweep.dir), "sweep.md", "Table and figure")
