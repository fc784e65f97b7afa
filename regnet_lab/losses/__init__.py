"""Loss terms: each looks at a pair and its registration and returns one number for the batch.

The weight lives on the term; the configuration's key is its name in the log.
"""

from regnet_lab.losses.affine import AffinePenalty as AffinePenalty
from regnet_lab.losses.base import Loss as Loss
from regnet_lab.losses.base import PerLevel as PerLevel
from regnet_lab.losses.consistency import inverse_consistency as inverse_consistency
from regnet_lab.losses.cropped import Cropped as Cropped
from regnet_lab.losses.image import Similarity as Similarity
from regnet_lab.losses.labels import SoftDice as SoftDice
from regnet_lab.losses.smoothness import Bending as Bending
from regnet_lab.losses.smoothness import Diffusion as Diffusion
from regnet_lab.losses.smoothness import Folding as Folding
from regnet_lab.losses.smoothness import TotalVariation as TotalVariation
from regnet_lab.losses.supervision import EndpointError as EndpointError
from regnet_lab.losses.supervision import HuberDisplacement as HuberDisplacement
from regnet_lab.losses.supervision import LandmarkDistance as LandmarkDistance
from regnet_lab.losses.unrolled import Unrolled as Unrolled
