"""Errors a user can act on.

Every one names *what* is wrong, the *value* met, the *limit* and the *fix*. The commands print the message on one line
and exit with code 2 (`jaxablate.exits`).
"""


class JaxablateError(Exception):
    """Base of every error that a user, not a bug, can cause."""


class ConfigError(JaxablateError, ValueError):
    """A setting is out of range, unknown, or does not fit the others."""


class DataError(JaxablateError, ValueError):
    """A data file is missing, empty, corrupt, or does not fit the model."""


class TooLittleDataError(DataError):
    """A measure needs more text than there is. `score` leaves the suite out where it was not asked for by name."""


class CheckpointError(JaxablateError, RuntimeError):
    """A checkpoint or working directory cannot be written, read, or does not fit the run."""


class TrainingError(JaxablateError, RuntimeError):
    """Training cannot go on, for example because the loss is no longer finite."""


class FileError(JaxablateError, RuntimeError):
    """A file or folder cannot be read or written, or another process is using it."""
