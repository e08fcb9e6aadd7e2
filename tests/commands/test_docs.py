"""docs/cli.md says what the commands say."""

from mgvq_export.tools.write_cli_docs import TARGET, cli_docs


def test_the_page_is_the_commands_help() -> None:
    assert TARGET.read_text(encoding="utf-8") == cli_docs(), "run python -m mgvq_export.tools.write_cli_docs"
