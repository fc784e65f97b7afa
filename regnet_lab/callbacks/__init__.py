"""What happens beside training: checkpoints that survive, a log, pictures, tables."""

from regnet_lab.callbacks.cases import CaseTable as CaseTable
from regnet_lab.callbacks.checkpoint import LastCheckpoint as LastCheckpoint
from regnet_lab.callbacks.watch import HyperParameters as HyperParameters
from regnet_lab.callbacks.watch import RememberGrid as RememberGrid
from regnet_lab.callbacks.watch import ValidationLog as ValidationLog
from regnet_lab.callbacks.watch import ValidationPanel as ValidationPanel
