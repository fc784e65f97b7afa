import pytest
import torch
from omegaconf import OmegaConf

from regnet_lab.config.instantiate import build, check_target
from regnet_lab.errors import UserError


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "regnet_lab.data.io.images.zlib.compress",
        "regnet_lab.data.case.np.load",
        "regnet_lab.evaluation.setup.pickle.loads",
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
def test_a_target_that_is_not_ours_is_refused(target):
    with pytest.raises(UserError, match=r"refused|no such thing"):
        check_target(target)


def test_a_refused_target_never_runs(tmp_path):
    trace = tmp_path / "ran"
    nested = {
        "_target_": "regnet_lab.models.Diffeomorphic",
        "model": {"_target_": "os.mkdir", "_args_": [str(trace)]},
    }
    with pytest.raises(UserError, match=r"os\.mkdir is refused"):
        build(OmegaConf.create(nested))
    assert not trace.exists()


def test_the_user_may_admit_another_package():
    config = OmegaConf.create({"_target_": "fractions.Fraction", "numerator": 3})
    with pytest.raises(UserError, match="refused"):
        build(config)
    assert build(config, allow=["fractions"]) == 3


def test_a_misspelt_argument_is_named():
    config = OmegaConf.create({"_target_": "regnet_lab.losses.Diffusion", "wieght": 1.0})
    with pytest.raises(UserError, match="wieght"):
        build(config)


def test_a_misspelt_class_is_named():
    with pytest.raises(UserError, match="Difusion"):
        build(OmegaConf.create({"_target_": "regnet_lab.losses.Difusion"}))


def test_what_is_ours_is_built():
    config = OmegaConf.create({"_target_": "torch.optim.Adam", "_partial_": True, "lr": 0.5})
    optimizer = build(config)([torch.nn.Parameter(torch.zeros(1))])
    assert optimizer.param_groups[0]["lr"] == 0.5
