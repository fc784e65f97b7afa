"""Physical space: coordinate conventions, image grids, and transform files of other programs.

Every transform maps points of the fixed image to the moving image (the direction of resampling),
in LPS+ mm (see :mod:`regnet_lab.spatial.coordinates`).  In memory it is a SimpleITK transform,
which can be applied to images and points and composed with others.
"""

from regnet_lab.spatial.deformation import Deformation as Deformation
from regnet_lab.spatial.readers import compose_transforms as compose_transforms
from regnet_lab.spatial.readers import read_transform as read_transform
from regnet_lab.spatial.writers import TRANSFORM_WRITERS as TRANSFORM_WRITERS
from regnet_lab.spatial.writers import write_transforms as write_transforms
