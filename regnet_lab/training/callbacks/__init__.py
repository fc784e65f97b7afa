"""Lightning callbacks: fault-tolerant checkpoints, logging, tables and figures."""

from regnet_lab.training.callbacks.alternating import AlternatingTraining as AlternatingTraining
from regnet_lab.training.callbacks.case_table import CaseTable as CaseTable
from regnet_lab.training.callbacks.case_table import RunInfo as RunInfo
from regnet_lab.training.callbacks.checkpoint import AtomicCheckpointIO as AtomicCheckpointIO
from regnet_lab.training.callbacks.checkpoint import LastCheckpoint as LastCheckpoint
from regnet_lab.training.callbacks.checkpoint import SaveDivergedBatch as SaveDivergedBatch
from regnet_lab.training.callbacks.dirvnet import DIRVNetFigures as DIRVNetFigures
from regnet_lab.training.callbacks.energy import EnergyCurve as EnergyCurve
from regnet_lab.training.callbacks.example_cases import ExampleCases as ExampleCases
from regnet_lab.training.callbacks.logging import HyperparameterLog as HyperparameterLog
from regnet_lab.training.callbacks.logging import SaveTrainingGrid as SaveTrainingGrid
from regnet_lab.training.callbacks.logging import ValidationFigure as ValidationFigure
from regnet_lab.training.callbacks.logging import ValidationLog as ValidationLog
