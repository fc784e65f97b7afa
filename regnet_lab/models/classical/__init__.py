"""Registration without training, by other libraries or by optimisation, with the model interface.

The methods run on the CPU (ConvexAdam on any device) and cannot be trained.
"""

from regnet_lab.models.classical.ants import ANTs as ANTs
from regnet_lab.models.classical.elastix import Elastix as Elastix
from regnet_lab.models.classical.simpleitk import AffineMI as AffineMI
from regnet_lab.models.classical.simpleitk import Demons as Demons
