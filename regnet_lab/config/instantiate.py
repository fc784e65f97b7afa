"""Instantiate a configuration whose targets lie in an explicit list of packages.

A configuration may come from somebody else's run, so a ``_target_`` is allowed only if the object
it resolves to is defined in one of the listed packages.
"""

import inspect
import logging
from collections.abc import Iterable
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf

from regnet_lab.errors import UserError

logging.getLogger("hydra.utils").setLevel(logging.CRITICAL)  # check_target reports it
FUNCTION_PACKAGES = (  # whose functions may be named; none of them writes files
    "regnet_lab.data.datasets",
    "regnet_lab.data.preprocessing.functional",
    "regnet_lab.data.synthesis",
    "regnet_lab.metrics.scorers",
    "regnet_lab.ops.similarity",
)
# whose classes a configuration from a run's folder may name: none of them writes files, opens
# connections or starts programs when it is made
RUN_CLASS_PACKAGES = (
    "regnet_lab.data.augmentation",
    "regnet_lab.data.datamodule",
    "regnet_lab.data.datasets",
    "regnet_lab.data.patches",
    "regnet_lab.data.preprocessing.grids",
    "regnet_lab.data.synthesis",
    "regnet_lab.losses",
    "regnet_lab.models",
    "regnet_lab.spatial.linear_alignment",
    "regnet_lab.training.lr_schedulers",
    "regnet_lab.training.module",
    "torch.nn",
    "torch.optim",
)
CLASS_PACKAGES = (  # whose classes the user's configuration may name
    *RUN_CLASS_PACKAGES,
    "regnet_lab.evaluation.atlas",
    "regnet_lab.evaluation.displacement_stats",
    "regnet_lab.evaluation.export_regnet_2019",
    "regnet_lab.evaluation.iteration_sweep",
    "regnet_lab.evaluation.submission",
    "regnet_lab.evaluation.tasks",
    "regnet_lab.registration.instance_optimization",
    "regnet_lab.training.callbacks",
    "pytorch_lightning.accelerators",
    "pytorch_lightning.callbacks",
    "pytorch_lightning.loggers",
    "pytorch_lightning.plugins",
    "pytorch_lightning.profilers",
    "pytorch_lightning.strategies",
    "pytorch_lightning.trainer",
)
IMPORTABLE_PACKAGES = ("regnet_lab", "pytorch_lightning.Trainer", *CLASS_PACKAGES)


def is_inside_packages(name: str, packages: Iterable[str]) -> bool:
    """Return whether a dotted name lies in one of the packages."""
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def check_config(config: object, allowed: Iterable[str] = CLASS_PACKAGES) -> None:
    """Refuse a resolved configuration with a forbidden target or a remaining interpolation.

    An escaped interpolation could otherwise become a target when it is resolved once more.
    """
    if isinstance(config, str) and "${" in config:
        raise UserError(
            f"{config} is refused: an interpolation may not result in another interpolation."
        )
    items: Iterable[tuple[object, object]] = enumerate(config) if isinstance(config, list) else ()
    for key, value in config.items() if isinstance(config, dict) else items:
        check_config(key, allowed)
        if key == "_target_":
            check_target(str(value), allowed)
        else:
            check_config(value, allowed)


def check_target(target: str, allowed: Iterable[str] = CLASS_PACKAGES) -> None:
    """Refuse a target unless the object it resolves to is defined in an allowed package.

    Classes may be of the packages ``allowed``, functions also of ``FUNCTION_PACKAGES``.
    ``regnet_lab.data.io.images.os.system`` has an allowed prefix, but resolves to a function of
    ``posix``.

    Raises:
        UserError: It is not allowed, or there is no such object.
    """
    allowed = tuple(allowed)
    try:
        importable = is_inside_packages(target, (*IMPORTABLE_PACKAGES, *allowed))
        resolved = get_object(target) if importable else None
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"_target_ {target}: there is no such class or function; check its spelling."
        ) from error
    defining_module = getattr(resolved, "__module__", None) or ""
    is_class = inspect.isclass(resolved) and is_inside_packages(defining_module, allowed)
    is_function = (
        inspect.isfunction(resolved)
        and "." not in resolved.__qualname__  # no method, such as load_from_checkpoint
        and is_inside_packages(defining_module, (*FUNCTION_PACKAGES, *allowed))
    )
    if not (is_class or is_function):
        raise UserError(
            f"_target_ {target} is refused: a configuration may only name classes and functions "
            "of regnet_lab, torch and pytorch_lightning that take part in registration, that of a "
            "run only models, data, losses and metrics; trusted_packages=[package] allows another "
            "package."
        )


def remove_cache_folders(config: Any) -> Any:
    """Return a configuration whose caches are in memory or off, not in a folder."""
    if isinstance(config, dict):
        return {
            key: None if key == "cache" and value != "memory" else remove_cache_folders(value)
            for key, value in config.items()
        }
    return [remove_cache_folders(item) for item in config] if isinstance(config, list) else config


def instantiate_config(
    config: DictConfig | ListConfig | None, trusted_packages: Iterable[str] = (), **more: Any
) -> Any:
    """Instantiate a configuration whose targets are all allowed; null gives None.

    Classes and functions of ``trusted_packages`` may be named, too; ``more`` are additional
    arguments of the outermost object.
    """
    container = OmegaConf.to_container(config, resolve=True) if config is not None else None
    check_config(container, (*CLASS_PACKAGES, *trusted_packages))
    return _instantiate(container, more)


def instantiate_run_config(
    config: DictConfig | None, trusted_packages: Iterable[str] = (), **more: Any
) -> Any:
    """Instantiate a part of the configuration in a run's folder, which may be a stranger's.

    It may name models, data, losses and metrics only, and its caches get no folder.
    """
    container = OmegaConf.to_container(config, resolve=True) if config is not None else None
    check_config(container, (*RUN_CLASS_PACKAGES, *trusted_packages))
    return _instantiate(remove_cache_folders(container), more)


def _instantiate(container: Any, more: dict[str, Any]) -> Any:
    try:
        return instantiate(container, **more, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, UserError):
            raise cause from error
        reason = " ".join(str(cause or error).split())
        raise UserError(f"The configuration does not fit: {reason}") from error
