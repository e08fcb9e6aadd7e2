"""The messages on the page are those of the program."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
MESSAGES = re.findall(r"^### `(.+)`$", PAGE, re.MULTILINE)


@pytest.fixture(scope="module")
def texts() -> str:
    """Every text of the sources, what is filled in as ``...``."""
    found = []
    sources = [path for path in ROOT.glob("*/**/*.py") if path.relative_to(ROOT).parts[0] not in {"tests", ".venv", "build"}]
    for path in sources:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(part.value if isinstance(part, ast.Constant) else "..." for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


def test_there_are_ten() -> None:
    assert len(MESSAGES) >= 10


@pytest.mark.parametrize("message", MESSAGES)
def test_the_program_says_it(message: str, texts: str) -> None:
    assert message in texts


def test_the_exit_codes() -> None:
    from mgvq_export.commands import verb
    from mgvq_export.core.errors import CheckFailed, InputError

    codes = {0, CheckFailed.exit_code, InputError.exit_code, verb.BAD_INPUT, verb.INTERNAL, verb.INTERRUPTED}
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE)} == codes
