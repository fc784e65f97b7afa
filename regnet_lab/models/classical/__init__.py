"""Registration without learning behind the model contract: other libraries' algorithms, on the CPU.

They need no training and cannot be trained; tensors go in, displacements in voxels come out.
"""

from regnet_lab.models.classical.ants import ANTs as ANTs
from regnet_lab.models.classical.elastix import Elastix as Elastix
from regnet_lab.models.classical.simpleitk import AffineMI as AffineMI
from regnet_lab.models.classical.simpleitk import Demons as Demons
