"""What several tests assert, and figures they share."""

import re

from click.testing import Result

from mgvq_export.core.spec import Part, Reach

#: Strides and receptive field of the released variants' trunks.
RELEASED_REACH = {
    Part.ENCODER_TRUNK: Reach(8, 1, 87, 87),
    Part.ENCODER_TRUNK_FINE: Reach(4, 1, 19, 19),
    Part.ENCODER_TRUNK_COARSE: Reach(2, 1, 17, 17),
    Part.DECODER_TRUNK: Reach(1, 8, 15, 15),
    Part.DECODER_TRUNK_COARSE: Reach(1, 2, 11, 11),
    Part.DECODER_TRUNK_FINE: Reach(1, 4, 7, 7),
}


def one_line(text: str) -> bool:
    """Whether ``text`` is one line that says something."""
    return bool(re.fullmatch(r"[^\n]{20,}\n?", text))


def assert_refused(result: Result, match: str) -> None:
    """A command ended as bad input does: exit code 2, one line that holds ``match``, nothing on standard output."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert one_line(result.stderr), result.stderr
    assert match in result.stderr
