"""What happens beside training: checkpoints that survive, a log, pictures, tables."""

from regnet_lab.callbacks.about import About as About
from regnet_lab.callbacks.alternation import Alternation as Alternation
from regnet_lab.callbacks.cases import CaseTable as CaseTable
from regnet_lab.callbacks.checkpoint import DivergedBatch as DivergedBatch
from regnet_lab.callbacks.checkpoint import LastCheckpoint as LastCheckpoint
from regnet_lab.callbacks.checkpoint import WholeCheckpoints as WholeCheckpoints
from regnet_lab.callbacks.energy import EnergyCurve as EnergyCurve
from regnet_lab.callbacks.gallery import Gallery as Gallery
from regnet_lab.callbacks.unrolled import UnrolledPictures as UnrolledPictures
from regnet_lab.callbacks.watch import HyperParameters as HyperParameters
from regnet_lab.callbacks.watch import RememberGrid as RememberGrid
from regnet_lab.callbacks.watch import ValidationLog as ValidationLog
from regnet_lab.callbacks.watch import ValidationPanel as ValidationPanel
