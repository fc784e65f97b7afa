"""From a configuration to objects, and no further than the packages it may name."""

import inspect
import logging
from collections.abc import Iterable, Iterator
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf

from regnet_lab.errors import UserError

logging.getLogger("hydra.utils").setLevel(logging.CRITICAL)  # check_target says it in a sentence
FUNCTIONS = (
    "regnet_lab.data.datasets",
    "regnet_lab.data.preprocessing.functional",
    "regnet_lab.data.synthesis",
    "regnet_lab.metrics.scorers",
    "regnet_lab.ops.similarity",
)
CLASSES = (
    "regnet_lab.data",
    "regnet_lab.metrics",
    "regnet_lab.ops.similarity",
    "regnet_lab.spatial.linear_alignment",
    "regnet_lab.training.callbacks",
    "regnet_lab.losses",
    "regnet_lab.models",
    "regnet_lab.training.module",
    "regnet_lab.training.lr_schedulers",
    "regnet_lab.registration.instance_optimization",
    "regnet_lab.evaluation",
    "pytorch_lightning.accelerators",
    "pytorch_lightning.callbacks",
    "pytorch_lightning.loggers",
    "pytorch_lightning.plugins",
    "pytorch_lightning.profilers",
    "pytorch_lightning.strategies",
    "pytorch_lightning.trainer",
    "torch.nn",
    "torch.optim",
)
SHORT = ("pytorch_lightning.Trainer",)  # names by which their classes are known besides


def within(name: str, packages: Iterable[str]) -> bool:
    """Whether a dotted name lies in one of the packages."""
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def leaves(node: object, key: object = None) -> Iterator[tuple[object, object]]:
    """Every value below a plain container that is none itself, with the key it has."""
    if isinstance(node, dict):
        for name, value in node.items():
            yield None, name
            yield from [(name, value)] if name == "_target_" else leaves(value, name)
    elif isinstance(node, list):
        for value in node:
            yield from leaves(value)
    else:
        yield key, node


def check_plain(config: object, allow: Iterable[str] = ()) -> None:
    """Refuse a resolved configuration that names what it may not, or that would change once more
    when it is resolved again: an escaped interpolation can become a target only then.

    Raises:
        UserError: It does.
    """
    for key, value in leaves(config):
        if key == "_target_":
            check_target(str(value), allow)
        elif isinstance(value, str) and "${" in value:
            raise UserError(f"{value} is refused: an interpolation may not give another one.")


def check_target(target: str, allow: Iterable[str] = ()) -> None:
    """Refuse a target unless the object it resolves to is at home in an allowed package.

    ``regnet_lab.data.io.images.os.system`` begins well but resolves to a function of ``posix``.

    Raises:
        UserError: It is not, or there is no such object.
    """
    allow = tuple(allow)
    try:
        found = get_object(target) if within(target, (*CLASSES, *SHORT, *allow)) else None
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"_target_ {target}: there is no such thing; check its spelling."
        ) from error
    home = getattr(found, "__module__", None) or ""
    is_class = inspect.isclass(found) and within(home, (*CLASSES, *allow))
    is_function = (
        inspect.isfunction(found)
        and "." not in found.__qualname__  # no method, such as load_from_checkpoint
        and within(home, (*FUNCTIONS, *allow))
    )
    if not (is_class or is_function):
        raise UserError(
            f"_target_ {target} is refused: a configuration may only name classes and functions "
            "of regnet_lab, torch and pytorch_lightning that take part in registration; "
            "allow=[package] admits another."
        )


def build(config: DictConfig | ListConfig | None, allow: Iterable[str] = (), **more: Any) -> Any:
    """Instantiate a configuration whose targets are all allowed; ``more`` goes to the outermost.

    Raises:
        UserError: A target is refused or a constructor turns its arguments down.
    """
    plain = OmegaConf.to_container(config, resolve=True) if config is not None else None
    check_plain(plain, allow)
    try:
        return instantiate(plain, **more, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, UserError):
            raise cause from error
        reason = " ".join(str(cause or error).split())
        raise UserError(f"The configuration does not fit: {reason}") from error
