"""What happens beside training: checkpoints that survive, a log, pictures, tables."""

from regnet_lab.training.callbacks.alternating import Alternation as Alternation
from regnet_lab.training.callbacks.case_table import About as About
from regnet_lab.training.callbacks.case_table import CaseTable as CaseTable
from regnet_lab.training.callbacks.checkpoint import DivergedBatch as DivergedBatch
from regnet_lab.training.callbacks.checkpoint import LastCheckpoint as LastCheckpoint
from regnet_lab.training.callbacks.checkpoint import WholeCheckpoints as WholeCheckpoints
from regnet_lab.training.callbacks.dirvnet import UnrolledPictures as UnrolledPictures
from regnet_lab.training.callbacks.energy import EnergyCurve as EnergyCurve
from regnet_lab.training.callbacks.example_cases import Gallery as Gallery
from regnet_lab.training.callbacks.logging import HyperParameters as HyperParameters
from regnet_lab.training.callbacks.logging import RememberGrid as RememberGrid
from regnet_lab.training.callbacks.logging import ValidationLog as ValidationLog
from regnet_lab.training.callbacks.logging import ValidationPanel as ValidationPanel
