"""What several tests assert, and figures they share."""

import re

from click.testing import Result

from mgvq_export.core.spec import Part, ReceptiveField

#: Strides and receptive field of the released variants' trunks.
RELEASED_REACH = {
    Part.ENCODER_TRUNK: ReceptiveField(8, 1, 87, 87),
    Part.ENCODER_TRUNK_FINE: ReceptiveField(4, 1, 19, 19),
    Part.ENCODER_TRUNK_COARSE: ReceptiveField(2, 1, 17, 17),
    Part.DECODER_TRUNK: ReceptiveField(1, 8, 15, 15),
    Part.DECODER_TRUNK_COARSE: ReceptiveField(1, 2, 11, 11),
    Part.DECODER_TRUNK_FINE: ReceptiveField(1, 4, 7, 7),
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
