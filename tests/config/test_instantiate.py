"""Tests of instantiating objects from a configuration."""

import pytest
import torch
from omegaconf import OmegaConf

from regnet_lab.config.instantiate import check_target, instantiate_config
from regnet_lab.errors import UserError


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "regnet_lab.data.io.images.zlib.compress",
        "regnet_lab.data.preprocessing.functional.np.load",
        "regnet_lab.data.synthesis.intensity.np.load",
        "regnet_lab.evaluation.submission.serialization.np.savez",
        "regnet_lab.config.checkpoints.pickle.loads",
        "regnet_lab.evaluation.results.Evaluation",
        "regnet_lab.evaluation.submission.archive.zipfile.ZipFile",
        "regnet_lab.cli.make_toy_learn2reg.main",
        "regnet_lab.cli.export_regnet_2017.main",
        "regnet_lab.data.preprocessing.cache.FolderCache",
        "regnet_lab.utils.atomic_io.os.replace",
        "regnet_lab.utils.atomic_io.write_text",
        "regnet_lab.training.module.RegistrationModule.load_from_checkpoint",
        "pytorch_lightning.LightningModule.load_from_checkpoint",
        "torch.hub.load",
        "torch.load",
        "torch.nn.modules.module.torch.load",
        "torch.utils.cpp_extension.load_inline",
        "hydra.utils.get_method",
        "regnet_lab_evil.models.Net",
        "builtins.eval",
    ],
)
def test_target_outside_the_allowed_packages_is_refused(target):
    with pytest.raises(UserError, match=r"refused|no such class or function"):
        check_target(target)


def test_refused_target_is_never_called(tmp_path):
    trace = tmp_path / "ran"
    nested = {
        "_target_": "regnet_lab.models.DiffeomorphicModel",
        "model": {"_target_": "os.mkdir", "_args_": [str(trace)]},
    }
    with pytest.raises(UserError, match=r"os\.mkdir is refused"):
        instantiate_config(OmegaConf.create(nested))
    assert not trace.exists()


def test_trusted_packages_allow_another_package():
    config = OmegaConf.create({"_target_": "fractions.Fraction", "numerator": 3})
    with pytest.raises(UserError, match="refused"):
        instantiate_config(config)
    assert instantiate_config(config, trusted_packages=["fractions"]) == 3


def test_error_names_the_misspelled_argument():
    config = OmegaConf.create({"_target_": "regnet_lab.losses.Diffusion", "wieght": 1.0})
    with pytest.raises(UserError, match="wieght"):
        instantiate_config(config)


def test_error_names_the_misspelled_class():
    with pytest.raises(UserError, match="Difusion"):
        instantiate_config(OmegaConf.create({"_target_": "regnet_lab.losses.Difusion"}))


def test_allowed_target_is_instantiated():
    config = OmegaConf.create({"_target_": "torch.optim.Adam", "_partial_": True, "lr": 0.5})
    optimizer = instantiate_config(config)([torch.nn.Parameter(torch.zeros(1))])
    assert optimizer.param_groups[0]["lr"] == 0.5
