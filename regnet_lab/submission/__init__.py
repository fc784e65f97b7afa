"""Learn2Reg submissions: writing them, reading them, judging them."""

from regnet_lab.submission.published import PublishedPairs as PublishedPairs
from regnet_lab.submission.reader import Submission as Submission
from regnet_lab.submission.reader import Submitted as Submitted
from regnet_lab.submission.writer import SubmissionWriter as SubmissionWriter
