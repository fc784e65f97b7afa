import os
import subprocess
import sys

import pytest
import SimpleITK as sitk
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig

import regnet_lab.config.compose  # noqa: F401  registers the resolvers used in conf/
from regnet_lab.errors import MissingPackageError
from tests.helpers import CONF, ROOT

torch.set_num_threads(1)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Skip a test that needs a package of an extra that is not installed."""
    try:
        return (yield)
    except MissingPackageError as error:
        pytest.skip(str(error))


@pytest.fixture(autouse=True)
def seed_torch():
    """Seed PyTorch before every test."""
    torch.manual_seed(0)


@pytest.fixture
def composed():
    """Return a function that composes a configuration: ``composed("train", "model=gradirn")``."""

    def make(name, *overrides):
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose(name, [*overrides], return_hydra_config=True)
        cfg.hydra.runtime.output_dir, cfg.hydra.job.num = "output", 0
        HydraConfig.instance().set_config(cfg)  # for ${hydra:...}
        return cfg

    return make


@pytest.fixture
def command(tmp_path):
    """Return a function that runs ``python <script> <arguments>`` in an empty folder."""

    def run(script, *arguments, **environment):
        return subprocess.run(
            [sys.executable, ROOT / script, *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
            capture_output=True,
            encoding="utf-8",
            timeout=600,
        )

    return run


@pytest.fixture
def silence_itk():
    """Suppress ITK's warnings, such as those about voxel sizes."""
    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    yield
    sitk.ProcessObject.SetGlobalWarningDisplay(shown)
