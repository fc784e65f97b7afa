"""Spatial transforms as other programs write and read them: ITK, ANTs, FSL and Learn2Reg.

Every transform here goes the way of resampling, from a place of the fixed image to the place of
the moving one, in millimetres LPS+ (see :mod:`regnet_lab.spatial.coordinates`); in memory it is a SimpleITK
transform, so that any of them can be applied to images and points or put into a chain.
"""

from regnet_lab.spatial.deformation import Deformation as Deformation
from regnet_lab.spatial.readers import chain as chain
from regnet_lab.spatial.readers import read_transform as read_transform
from regnet_lab.spatial.writers import FORMATS as FORMATS
from regnet_lab.spatial.writers import write_transforms as write_transforms
