"""Configurations that name what they may not."""

import os
import pickle
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from benchmarks.malicious.canary import Canary, MaliciousFile, ReadCall
from regnet_lab.config.instantiate import instantiate_config

TARGETS = (  # each would make the canary if it were called
    "os.mkdir",
    "posix.mkdir",
    "regnet_lab.data.patches.os.mkdir",
    "regnet_lab.data.validation.image_stats.os.mkdir",
    "regnet_lab.evaluation.multirun.os.mkdir",
    "regnet_lab.utils.atomic_io.os.mkdir",
    "torch.nn.modules.module.torch.os.mkdir",
    "pytorch_lightning.trainer.trainer.os.mkdir",
    "regnet_lab.data.preprocessing.cache.Path.mkdir",
    "pathlib.Path.mkdir",
    "regnet_lab.data.preprocessing.cache.FolderCache.__init__.__globals__",
)
CODE = (  # each would run the code
    "builtins.eval",
    "builtins.exec",
    "regnet_lab.data.io.images.__builtins__.eval",
    "regnet_lab.models.eval",
    "timeit.timeit",
    "torch._dynamo.utils.exec",
)
PICKLES = (  # each would unpickle a file
    "torch.load",
    "torch.hub.load_state_dict_from_url",
    "torch.nn.modules.module.torch.load",
    "regnet_lab.config.checkpoints.torch.load",
    "regnet_lab.config.checkpoints.pickle.load",
    "regnet_lab.training.module.RegistrationModule.load_from_checkpoint",
    "pytorch_lightning.LightningModule.load_from_checkpoint",
    "numpy.load",
)
OTHERS = (  # ways round: what calls, imports, or writes what it is told
    "functools.partial",
    "hydra.utils.call",
    "hydra.utils.instantiate",
    "hydra.utils.get_method",
    "regnet_lab.config.instantiate.instantiate_config",
    "regnet_lab.config.instantiate.instantiate",
    "importlib.import_module",
    "subprocess.Popen",
    "torch.utils.cpp_extension.load_inline",
    "pytorch_lightning.cli.LightningCLI",
    "pytorch_lightning.utilities.model_summary.summarize",
    "regnet_lab.cli.convert_dirlab._write_then_rename",
    "regnet_lab.data.preprocessing.cache.write_arrays",
    "regnet_lab.data.validation.image_stats.save_cache",
    "regnet_lab.utils.atomic_io.write_text",
    "regnet_lab_evil.models.Net",
    "regnet_lab.models.Identity.__class__",
    "regnet_lab.models.Identity.__init__",
)


def configured(config: object, _: Path, canary: Path) -> ReadCall:
    """A configuration; ``CANARY`` in it is the canary's path."""
    text = OmegaConf.to_yaml(OmegaConf.create(config)).replace("CANARY", str(canary))
    return partial(instantiate_config, OmegaConf.create(text))


def unpickled(target: str, folder: Path, canary: Path) -> ReadCall:
    """A configuration that has a file unpickled."""
    path = folder / "evil.ckpt"
    path.write_bytes(pickle.dumps(Canary(os.mkdir, str(canary))))
    return partial(
        instantiate_config, OmegaConf.create({"_target_": target, "_args_": [str(path)]})
    )


def configurations() -> Iterator[tuple[str, MaliciousFile]]:
    """Targets in a configuration."""
    for target in TARGETS:
        yield target, partial(configured, {"_target_": target, "_args_": ["CANARY"]})
    for target in CODE:
        call = {"_target_": target, "_args_": ["__import__('os').mkdir('CANARY')"]}
        yield target, partial(configured, call)
    for target in PICKLES:
        yield target, partial(unpickled, target)
    for target in OTHERS:
        yield target, partial(configured, {"_target_": target, "_args_": ["os.mkdir", "CANARY"]})
    hidden: dict[str, Any] = {"_target_": "os.mkdir", "_args_": ["CANARY"]}
    places: dict[str, object] = {
        "in an argument": {"model": hidden},
        "in a list in an argument": {"model": [[hidden]]},
        "in _args_": {"_args_": [hidden]},
        "partial": {"model": hidden | {"_partial_": True}},
        "below _recursive_: false": {"_recursive_": False, "model": hidden},
        "in an interpolation": {"model": "${shelf}", "shelf": hidden},
        "in oc.create": {"model": "${oc.create:{_target_: os.mkdir, _args_: [CANARY]}}"},
        "in oc.decode": {"model": "${oc.decode:'{_target_: os.mkdir, _args_: [CANARY]}'}"},
        "in an escaped oc.create": {
            "model": "\\${oc.create:{_target_: os.mkdir, _args_: [CANARY]}}"
        },
        "in an escaped oc.decode": {
            "model": "\\${oc.decode:'{_target_: os.mkdir, _args_: [CANARY]}'}"
        },
    }
    for place, config in places.items():
        outer = {"_target_": "regnet_lab.models.DiffeomorphicModel", **config}  # type: ignore[dict-item]
        yield f"os.mkdir {place}", partial(configured, outer)
