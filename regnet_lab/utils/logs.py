"""Messages about files that are read many times."""

import logging
from functools import cache


@cache
def log_once(logger: logging.Logger, message: str, level: int = logging.WARNING) -> None:
    """Log a message, the same one only once in a process."""
    logger.log(level, "%s", message)
