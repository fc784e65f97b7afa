"""Loss terms: each looks at a pair and its registration and returns one number for the batch.

The weight lives on the term; the configuration's key is its name in the log.
"""

from regnet_lab.losses.base import Loss as Loss
from regnet_lab.losses.base import PerLevel as PerLevel
from regnet_lab.losses.composite import Cropped as Cropped
from regnet_lab.losses.composite import Unrolled as Unrolled
from regnet_lab.losses.regularization import AffinePenalty as AffinePenalty
from regnet_lab.losses.regularization import Bending as Bending
from regnet_lab.losses.regularization import Diffusion as Diffusion
from regnet_lab.losses.regularization import Folding as Folding
from regnet_lab.losses.regularization import TotalVariation as TotalVariation
from regnet_lab.losses.regularization import inverse_consistency as inverse_consistency
from regnet_lab.losses.similarity import Similarity as Similarity
from regnet_lab.losses.supervised import EndpointError as EndpointError
from regnet_lab.losses.supervised import HuberDisplacement as HuberDisplacement
from regnet_lab.losses.supervised import LandmarkDistance as LandmarkDistance
from regnet_lab.losses.supervised import SoftDice as SoftDice
