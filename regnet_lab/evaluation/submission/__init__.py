"""Write, read and score Learn2Reg submissions."""

from regnet_lab.evaluation.submission.original_grid import OriginalGridPairs as OriginalGridPairs
from regnet_lab.evaluation.submission.reader import Submission as Submission
from regnet_lab.evaluation.submission.reader import SubmissionModule as SubmissionModule
from regnet_lab.evaluation.submission.writer import SubmissionWriter as SubmissionWriter
