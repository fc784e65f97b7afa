"""What ``evaluate.py`` can do with a model and data, chosen by ``task=``."""

from regnet_lab.tasks.atlas import Atlas
from regnet_lab.tasks.judge import Judge
from regnet_lab.tasks.steps import Steps

__all__ = ["Atlas", "Judge", "Steps"]
