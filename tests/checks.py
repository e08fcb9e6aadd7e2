"""What several tests assert."""

import re


def one_line(text: str) -> bool:
    """Whether ``text`` is one line that says something."""
    return bool(re.fullmatch(r"[^\n]{20,}\n?", text))
