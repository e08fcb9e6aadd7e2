"""The errors users see: one line that says what, got, wanted and remedy.

Every error the package raises on purpose is an :class:`MgvqError`. The command line prints its
message as one line and exits with ``exit_code``; any other exception is a bug and keeps its traceback.
"""


class MgvqError(Exception):
    """Base of all errors raised on purpose. ``exit_code`` 2: the input or the set-up is at fault."""

    exit_code = 2


class InputError(MgvqError):
    """An image, argument or option cannot be used as given."""


class SpecError(MgvqError):
    """A model description contradicts itself, or names an unknown variant."""


class CheckpointError(MgvqError):
    """A checkpoint cannot be read, is unsafe, or does not hold the tensors its variant needs."""


class BundleError(MgvqError):
    """A bundle is missing, incomplete, changed since it was written, or lacks what was asked of it."""


class TokensError(MgvqError):
    """Codes contradict their description, a token file is damaged, or it belongs to another codebook."""


class BackendError(MgvqError):
    """A requested backend is not installed or did not load."""


class CheckFailed(MgvqError):
    """A verification ran to its end and found a difference above tolerance. ``exit_code`` 1."""

    exit_code = 1
