"""Models made of models: each wrapper keeps the contract, so they compose like functions."""

from regnet_lab.models.wrappers.chain import Chain as Chain
from regnet_lab.models.wrappers.diffeomorphic import Diffeomorphic as Diffeomorphic
from regnet_lab.models.wrappers.multi_stage import MultiStage as MultiStage
from regnet_lab.models.wrappers.pretrained import Pretrained as Pretrained
from regnet_lab.models.wrappers.refined import Refined as Refined
from regnet_lab.models.wrappers.repeated import Repeated as Repeated
from regnet_lab.models.wrappers.slice_wise import SliceWise as SliceWise
from regnet_lab.models.wrappers.tiled import Tiled as Tiled
