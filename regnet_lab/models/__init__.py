"""Models: ``model(fixed, moving) -> list of displacement fields``, coarse to fine.

Images are (B, 1, *spatial); each field is (B, D, *grid) in voxels of its own grid.
"""

from regnet_lab.models.affine import Affine as Affine
from regnet_lab.models.classical import AffineMI as AffineMI
from regnet_lab.models.classical import ANTs as ANTs
from regnet_lab.models.classical import Demons as Demons
from regnet_lab.models.classical import Elastix as Elastix
from regnet_lab.models.classical.convex_adam import ConvexAdam as ConvexAdam
from regnet_lab.models.dirvnet import DIRVNet as DIRVNet
from regnet_lab.models.faim import FAIM as FAIM
from regnet_lab.models.gradirn import GraDIRN as GraDIRN
from regnet_lab.models.identity import Identity as Identity
from regnet_lab.models.pyramid import Pyramid as Pyramid
from regnet_lab.models.regnet_2017 import RegNet as RegNet
from regnet_lab.models.regnet_2019 import RegNetCrop4 as RegNetCrop4
from regnet_lab.models.regnet_2019 import RegNetDecimation4 as RegNetDecimation4
from regnet_lab.models.regnet_2019 import RegNetUNet as RegNetUNet
from regnet_lab.models.shared_pyramid import SharedPyramid as SharedPyramid
from regnet_lab.models.voxelmorph import VoxelMorph as VoxelMorph
from regnet_lab.models.wrappers import Chain as Chain
from regnet_lab.models.wrappers import DiffeomorphicModel as DiffeomorphicModel
from regnet_lab.models.wrappers import IterativeRefinement as IterativeRefinement
from regnet_lab.models.wrappers import MultiStage as MultiStage
from regnet_lab.models.wrappers import PretrainedModel as PretrainedModel
from regnet_lab.models.wrappers import ResidualRefinement as ResidualRefinement
from regnet_lab.models.wrappers import SliceWiseModel as SliceWiseModel
from regnet_lab.models.wrappers import TiledModel as TiledModel
