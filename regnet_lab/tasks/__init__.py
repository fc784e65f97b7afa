"""What ``evaluate.py`` can do with a model and data, chosen by ``task=``."""

from regnet_lab.tasks.atlas import Atlas as Atlas
from regnet_lab.tasks.judge import Judge as Judge
from regnet_lab.tasks.optimum import Optimum as Optimum
from regnet_lab.tasks.passes import Passes as Passes
from regnet_lab.tasks.pictures import Pictures as Pictures
from regnet_lab.tasks.steps import Steps as Steps
