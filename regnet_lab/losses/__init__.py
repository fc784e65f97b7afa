"""Terms of the training objective.

A term maps a batch of pairs and its registration to one number.  The configuration names the
terms; :func:`compute_objective` weights and sums them.
"""

from regnet_lab.losses.base import Loss as Loss
from regnet_lab.losses.base import compute_objective as compute_objective
from regnet_lab.losses.composite import CroppedLoss as CroppedLoss
from regnet_lab.losses.composite import DeepSupervision as DeepSupervision
from regnet_lab.losses.composite import UnrolledLoss as UnrolledLoss
from regnet_lab.losses.regularization import AffinePenalty as AffinePenalty
from regnet_lab.losses.regularization import BendingEnergy as BendingEnergy
from regnet_lab.losses.regularization import Diffusion as Diffusion
from regnet_lab.losses.regularization import FoldingPenalty as FoldingPenalty
from regnet_lab.losses.regularization import TotalVariation as TotalVariation
from regnet_lab.losses.regularization import inverse_consistency as inverse_consistency
from regnet_lab.losses.similarity import Similarity as Similarity
from regnet_lab.losses.supervised import EndpointError as EndpointError
from regnet_lab.losses.supervised import HuberDisplacement as HuberDisplacement
from regnet_lab.losses.supervised import LandmarkDistance as LandmarkDistance
from regnet_lab.losses.supervised import SoftDice as SoftDice
