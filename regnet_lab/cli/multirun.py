"""The jobs of ``-m``: done once, continued where they stopped, in processes of their own where a
job takes several.
"""

import ctypes
import json
import math
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig
from pytorch_lightning import Trainer

from regnet_lab.config.compose import CONF
from regnet_lab.config.instantiate import build
from regnet_lab.config.run_dir import kept
from regnet_lab.errors import UserError
from regnet_lab.training.config_sync import difference, settings
from regnet_lab.utils.atomic_io import write_text
from regnet_lab.utils.runtime import quieten

RESULT = "result.json"
LAST = Path("checkpoints", "last.ckpt")


def finish(cfg: DictConfig, trainer: Trainer) -> float:
    """Write ``result.json``, which says that a run is finished; the last value of its monitor."""
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
        write_text(Path(cfg.folder) / RESULT, json.dumps(result, indent=2))
    return worth(result)


def outcome(folder: str | Path) -> dict[str, Any] | None:
    """What a finished run came to; None if it did not finish."""
    path = Path(folder) / RESULT
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def worth(result: dict[str, Any] | None) -> float:
    """The number a sweep compares; NaN if there is none."""
    value = (result or {}).get("value")
    return math.nan if value is None else value


def begun(cfg: DictConfig) -> bool:
    """Whether this training in a sweep was begun before.

    Raises:
        UserError: What was begun in its folder is another one.
    """
    new = "resume" not in cfg or not Path(cfg.folder, "config.yaml").is_file()
    if new or HydraConfig.get().mode != RunMode.MULTIRUN:
        return False
    if unlike := difference(settings(kept(cfg.folder)), settings(cfg)):
        raise UserError(
            f"{cfg.folder} holds the job of another sweep ({unlike}): choose another sweep_dir."
        )
    return True


def last_checkpoint(cfg: DictConfig) -> str | None:
    """From where a run goes on: the one to resume, or a job of a sweep that was interrupted."""
    if cfg.resume:
        return str(Path(cfg.resume) / LAST)
    last = Path(cfg.folder) / LAST
    return str(last) if begun(cfg) and last.is_file() else None


def job(command: str, task: Callable[[DictConfig], float | None], cfg: DictConfig) -> float | None:
    """Do a job of a sweep, unless it is done."""
    done = outcome(cfg.folder) if begun(cfg) else None
    if done is not None:
        return worth(done)
    return apart(command, cfg) if launches(cfg) else task(cfg)


def launches(cfg: DictConfig) -> bool:
    """Whether the trainer starts further processes itself."""
    quieten()
    trainer = build(cfg.trainer, cfg.allow, callbacks=[], logger=False)
    environment = getattr(trainer.strategy.launcher, "cluster_environment", None)
    return trainer.world_size > 1 and not getattr(environment, "creates_processes_externally", True)


def apart(command: str, cfg: DictConfig) -> float:
    """Do a job by the command that does the same alone.

    The processes that a trainer starts repeat the command line they find: in a sweep each would
    sweep on its own, and train with other values.  And where one of them fails, Lightning kills
    the process that started it, which must not be the sweep's.

    Raises:
        UserError: The job failed, or another one was done.
    """
    quoted = '"' + str(cfg.folder).replace("\\", "\\\\").replace('"', '\\"') + '"'
    given = [*HydraConfig.get().overrides.task, f"hydra.run.dir={quoted}"]
    if begun(cfg) and last_checkpoint(cfg):
        given = [f"resume={quoted}"]
    script = str(Path(CONF).parent / f"{command}.py")
    arguments = [sys.executable, script, *given, "hydra.mode=RUN"]
    with subprocess.Popen(arguments, preexec_fn=_end_with_parent) as process:
        try:
            code = process.wait()
        except KeyboardInterrupt:
            process.wait()  # it was interrupted too, and writes its checkpoint
            raise
    if code:
        raise UserError(f"{cfg.folder}: this job ended with exit code {code}.")
    if begun(cfg) and (result := outcome(cfg.folder)):
        return worth(result)
    return math.nan


def _end_with_parent() -> None:
    if sys.platform == "linux":  # PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
