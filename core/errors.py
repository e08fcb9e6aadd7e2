"""The errors users see: one line that says what, got, wanted and remedy.

Every error the package raises on purpose is an :class:`MgvqError`. The command line prints its
message as one line and exits with ``exit_code``; any other exception is a bug and keeps its traceback.
"""


def shown(value: object, most: int = 80, *, quoted: bool = True) -> str:
    """``value``, which comes from a file or a user, as messages print it: shortened to ``most`` characters, on one line.

    Control characters and what no terminal can print are escaped. Text is put in quotes, unless ``quoted`` is false.
    """
    if isinstance(value, str):
        # Cut first: the text may be as large as the file that it is from.
        text, left_out = value[: most + 1], len(value) > most
        text = repr(text) if quoted else one_line(text)
    elif isinstance(value, (bool, int, float, type(None))):
        text, left_out = _number(value), False
    else:
        text, left_out = f"{'a' if type(value).__name__[:1] not in 'aeiou' else 'an'} {type(value).__name__}", False
    if left_out or len(text) > most + 2 * quoted:
        end = text[-1] if quoted and isinstance(value, str) else ""
        return f"{text[:most]}...{end}"
    return text


def _number(value: bool | int | float | None) -> str:
    if isinstance(value, int) and value.bit_length() > 256:  # text of thousands of digits takes long, or is refused
        return f"a whole number of {value.bit_length():,} bits"
    return repr(value)


def one_line(text: str) -> str:
    """``text`` with everything that is not printable written as an escape, such as ``\\n``."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class MgvqError(Exception):
    """Base of all errors raised on purpose. ``exit_code`` 2: the input or the set-up is at fault.

    The message is one line: line breaks and control characters, which may come from a file, are escaped.
    """

    exit_code = 2

    def __init__(self, message: str = ""):
        super().__init__(one_line(message))


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
