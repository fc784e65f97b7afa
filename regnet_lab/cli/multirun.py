"""Run the jobs of a multirun (``-m``).

Finished jobs are skipped, interrupted ones are continued, and a job with several processes runs as
a command of its own.
"""

import ctypes
import json
import math
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig
from pytorch_lightning import Trainer

from regnet_lab.cli.entrypoint import Task
from regnet_lab.config.compose import CONFIG_DIR
from regnet_lab.config.instantiate import instantiate_config
from regnet_lab.config.run_dir import load_run_config
from regnet_lab.config.settings import describe_difference, flatten_settings
from regnet_lab.errors import UserError
from regnet_lab.utils.atomic_io import write_text
from regnet_lab.utils.runtime import silence_lightning

RESULT_FILE = "result.json"
LAST_CHECKPOINT = Path("checkpoints", "last.ckpt")


def finish_run(cfg: DictConfig, trainer: Trainer) -> float:
    """Write ``result.json``, which marks a run as finished; return its last monitored value.

    A finished run that was resumed without further steps keeps its result.
    """
    earlier = load_result(cfg.output_dir)
    if earlier is not None and earlier["steps"] == trainer.global_step:
        return objective_value(earlier)
    numbers = {name: float(value) for name, value in trainer.callback_metrics.items()}
    best = getattr(trainer.checkpoint_callback, "best_model_score", None)
    result = {
        "monitor": cfg.monitor,
        "value": numbers.get(cfg.monitor),
        "best": None if best is None else float(best),
        "steps": trainer.global_step,
        "metrics": numbers,
    }
    if trainer.is_global_zero:
        write_text(Path(cfg.output_dir) / RESULT_FILE, json.dumps(result, indent=2))
    return objective_value(result)


def load_result(folder: str | Path) -> dict[str, Any] | None:
    """Load ``result.json`` of a run; None if the run did not finish."""
    path = Path(folder) / RESULT_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def objective_value(result: dict[str, Any] | None) -> float:
    """Return the number that a sweep compares; NaN if there is none."""
    value = (result or {}).get("value")
    return math.nan if value is None else value


def has_started(cfg: DictConfig) -> bool:
    """Return whether this job of a sweep was started before.

    Raises:
        UserError: Its folder contains another job.
    """
    is_new = "resume" not in cfg or not Path(cfg.output_dir, "config.yaml").is_file()
    if is_new or HydraConfig.get().mode != RunMode.MULTIRUN:
        return False
    settings = (flatten_settings(config) for config in (load_run_config(cfg.output_dir), cfg))
    if difference := describe_difference(*settings):
        raise UserError(
            f"{cfg.output_dir} holds the job of another sweep ({difference}): "
            "choose another sweep_dir."
        )
    return True


def find_last_checkpoint(cfg: DictConfig) -> str | None:
    """Return the checkpoint to continue from: of the run to resume, or of an interrupted job."""
    if cfg.resume:
        return str(Path(cfg.resume) / LAST_CHECKPOINT)
    last = Path(cfg.output_dir) / LAST_CHECKPOINT
    return str(last) if has_started(cfg) and last.is_file() else None


def run_job(command: str, task: Task, cfg: DictConfig) -> float | None:
    """Run a job of a sweep unless it is finished."""
    result = load_result(cfg.output_dir) if has_started(cfg) else None
    if result is not None:
        return objective_value(result)
    return run_subprocess(command, cfg) if launches_processes(cfg) else task(cfg)


def launches_processes(cfg: DictConfig) -> bool:
    """Return whether the trainer starts further processes itself."""
    silence_lightning()
    trainer = instantiate_config(cfg.trainer, cfg.trusted_packages, callbacks=[], logger=False)
    environment = getattr(trainer.strategy.launcher, "cluster_environment", None)
    return trainer.world_size > 1 and not getattr(environment, "creates_processes_externally", True)


def run_subprocess(command: str, cfg: DictConfig) -> float:
    """Run a job as a command of its own.

    The processes that Lightning starts repeat the command line they find: within a sweep each of
    them would run the whole sweep, possibly with other values. If one of them fails, Lightning
    kills the process that started it, which must not be the sweep.
    """
    quoted = '"' + str(cfg.output_dir).replace("\\", "\\\\").replace('"', '\\"') + '"'
    overrides = [*HydraConfig.get().overrides.task, f"hydra.run.dir={quoted}", "overwrite=true"]
    if has_started(cfg) and find_last_checkpoint(cfg):
        overrides = [f"resume={quoted}"]
    script = str(Path(CONFIG_DIR).parent / f"{command}.py")
    arguments = [sys.executable, script, *overrides, "hydra.mode=RUN"]
    with subprocess.Popen(arguments, preexec_fn=_end_with_parent) as process:
        try:
            code = process.wait()
        except KeyboardInterrupt:
            process.wait()  # it was interrupted too, and writes its checkpoint
            raise
    if code:
        raise UserError(f"{cfg.output_dir}: this job ended with exit code {code}.")
    return objective_value(load_result(cfg.output_dir) if has_started(cfg) else None)


def _end_with_parent() -> None:
    if sys.platform == "linux":  # PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
