"""Learn2Reg submissions: writing them, reading them, judging them."""

from regnet_lab.evaluation.submission.original_grid import PublishedPairs as PublishedPairs
from regnet_lab.evaluation.submission.reader import Submission as Submission
from regnet_lab.evaluation.submission.reader import Submitted as Submitted
from regnet_lab.evaluation.submission.writer import SubmissionWriter as SubmissionWriter
