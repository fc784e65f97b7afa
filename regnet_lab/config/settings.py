"""Comparison of resolved configurations."""

from typing import Any

from omegaconf import DictConfig, OmegaConf

# say where a run is stored, not what it does
LOCATION_KEYS = ("run_dir", "sweep_dir", "resume", "overwrite")
MACHINE_KEYS = ("threads", "device")  # change the time of a result only


def flatten_settings(cfg: DictConfig) -> dict[str, str]:
    """Return the values of a resolved configuration by their dotted names.

    Location and machine keys are left out, and the run directory reads ".", so that equal runs in
    different places have equal settings.
    """
    text = OmegaConf.to_yaml(cfg, resolve=True).replace(str(cfg.output_dir), ".")
    values = flatten(OmegaConf.to_container(OmegaConf.create(text)))
    return {
        name: value for name, value in values.items() if name not in (*LOCATION_KEYS, *MACHINE_KEYS)
    }


def flatten(node: Any, prefix: str = "") -> dict[str, str]:
    """Return the leaves of nested mappings as text, by their dotted names.

    >>> flatten({"training_optimizer": {"lr": 0.1}, "seed": 0})
    {'training_optimizer.lr': '0.1', 'seed': '0'}
    """
    if not isinstance(node, dict) or not node:
        return {prefix: str(node)}
    children = (flatten(value, f"{prefix}.{key}".lstrip(".")) for key, value in node.items())
    return {name: value for child in children for name, value in child.items()}


def describe_difference(settings: dict[str, str], reference: dict[str, str]) -> str | None:
    """Describe the differing setting with the shortest name, as others may follow from it.

    >>> describe_difference({"training_optimizer.lr": "0.1"}, {"training_optimizer.lr": "0.2"})
    'training_optimizer.lr: 0.1, not 0.2'

    Returns:
        None if all settings are equal.
    """
    differing = [k for k in settings | reference if settings.get(k) != reference.get(k)]
    if not differing:
        return None
    name = min(differing, key=len)
    return f"{name}: {settings.get(name, 'absent')}, not {reference.get(name, 'absent')}"
