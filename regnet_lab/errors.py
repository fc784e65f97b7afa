"""The error a user can mend: one sentence that names the file, key or value and says what to do."""


class UserError(Exception):
    """Bad input; the entry points print its sentence and exit with code 2, without a traceback."""


class MissingPackageError(UserError):
    """Something asked for needs a package of an extra that is not installed."""
