"""Writes docs/cli.md from the commands' own help: python -m mgvq_export.tools.write_cli_docs (a test holds the file to it)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from mgvq_export.cli import VERBS, main

TARGET = Path(__file__).parents[1] / "docs" / "cli.md"

HEAD = """# The command line

Written from the commands' own help by `python -m mgvq_export.tools.write_cli_docs`; a test compares them.

Exit codes: 0 done; 1 a check failed; 2 the input or the set-up is at fault, said in one line; 3 a fault of the program; 130 stopped by Ctrl-C (129 by SIGHUP,
143 by SIGTERM).
Results go to standard output, errors and the progress bar to standard error. Every verb takes `--json`. Sizes are width x height in pixels.

Completion, in bash: `eval "$(_MGVQ_EXPORT_COMPLETE=bash_source mgvq-export)"` in `~/.bashrc`; in zsh `zsh_source`; in fish
`_MGVQ_EXPORT_COMPLETE=fish_source mgvq-export | source`.
"""


def cli_docs() -> str:
    """The whole page."""
    # As main() makes it: without these a command keeps whichever --help option was asked for first in this process.
    settings = {**main.context_settings, "terminal_width": 100, "max_content_width": 100}
    context = click.Context(main, info_name="mgvq-export", **settings)
    pages = [_page("mgvq-export", main, context)]
    for name in VERBS:
        command = main.get_command(context, name)
        assert command is not None
        pages += _pages(f"mgvq-export {name}", command, context)
    return "\n".join([HEAD, *pages])


def _pages(path: str, command: click.Command, parent: click.Context) -> Iterator[str]:
    context = click.Context(command, info_name=path.split()[-1], parent=parent, terminal_width=100, max_content_width=100)
    yield _page(path, command, context)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            if inner is not None and name != "run":  # it is what the group's own help shows
                yield from _pages(f"{path} {name}", inner, context)


def _page(path: str, command: click.Command, context: click.Context) -> str:
    return f"## {path}\n\n```text\n{command.get_help(context)}\n```\n"


if __name__ == "__main__":
    TARGET.write_text(cli_docs(), encoding="utf-8")
    print(TARGET)
