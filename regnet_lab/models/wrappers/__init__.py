"""Models made of other models; each keeps the model interface, so that they can be nested."""

from regnet_lab.models.wrappers.composition import Chain as Chain
from regnet_lab.models.wrappers.composition import DiffeomorphicModel as DiffeomorphicModel
from regnet_lab.models.wrappers.composition import IterativeRefinement as IterativeRefinement
from regnet_lab.models.wrappers.composition import MultiStage as MultiStage
from regnet_lab.models.wrappers.composition import ResidualRefinement as ResidualRefinement
from regnet_lab.models.wrappers.inference import PretrainedModel as PretrainedModel
from regnet_lab.models.wrappers.inference import SliceWiseModel as SliceWiseModel
from regnet_lab.models.wrappers.inference import TiledModel as TiledModel
