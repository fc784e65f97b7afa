"""Models made of models: each wrapper keeps the contract, so they compose like functions."""

from regnet_lab.models.wrappers.composition import Chain as Chain
from regnet_lab.models.wrappers.composition import Diffeomorphic as Diffeomorphic
from regnet_lab.models.wrappers.composition import MultiStage as MultiStage
from regnet_lab.models.wrappers.composition import Refined as Refined
from regnet_lab.models.wrappers.composition import Repeated as Repeated
from regnet_lab.models.wrappers.inference import Pretrained as Pretrained
from regnet_lab.models.wrappers.inference import SliceWise as SliceWise
from regnet_lab.models.wrappers.inference import Tiled as Tiled
