"""The command line's entry point: a table of verbs, each in a module of its own under ``commands``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

import click

from mgvq_export.commands.stopping import stoppable
from mgvq_export.commands.verb import BAD_INPUT, INTERRUPTED, explain, unknown_verb
from mgvq_export.core.errors import InputError
from mgvq_export.core.version import __version__

#: The verbs as ``--help`` lists them, in the order of the work: name -> (module and name of the command, section).
VERBS = {
    "models": ("models:models", "Make a bundle"),
    "export": ("export:export", "Make a bundle"),
    "calibrate": ("calibrate:calibrate", "Make a bundle"),
    "build": ("build:build", "Make a bundle"),
    "encode": ("encode:encode", "Run it"),
    "decode": ("decode:decode", "Run it"),
    "reconstruct": ("reconstruct:reconstruct", "Run it"),
    "tokenize": ("tokenize:tokenize", "Run it"),
    "publish": ("publish:publish", "Run it"),
    "verify": ("verify:verify", "Measure it"),
    "eval": ("eval:eval", "Measure it"),
    "bench": ("bench:bench", "Measure it"),
    "inspect": ("inspect:inspect", "Look around"),
    "doctor": ("doctor:doctor", "Look around"),
    "demo": ("demo:demo", "Look around"),
}


class Verbs(click.Group):
    """A group that imports a verb's module when the verb runs or its help is shown, and lists the verbs by section."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of all verbs, in the order of :data:`VERBS`."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """The command called ``name``, or None."""
        if name not in VERBS:
            return None
        module, _, attribute = VERBS[name][0].partition(":")
        return getattr(import_module(f"mgvq_export.commands.{module}"), attribute)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that ``args`` name. Raises :class:`InputError` with the nearest names where there is none."""
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            raise InputError(unknown_verb(args[0], VERBS))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of verbs in ``--help``, under their sections."""
        for title in dict.fromkeys(section for _, section in VERBS.values()):
            names = [name for name, (_, section) in VERBS.items() if section == title]
            commands = [(name, command) for name in names if (command := self.get_command(ctx, name))]
            with formatter.section(title):
                formatter.write_dl([(name, command.get_short_help_str(200)) for name, command in commands])

    def __call__(self, *args: object, **extra: object) -> object:
        """Run the command line as a program, which signals stop."""
        with stoppable():
            return super().__call__(*args, **extra)

    def main(  # type: ignore[override]  # click overloads it by the value of standalone_mode
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: object,
    ) -> object:
        """Run the command line. What click itself finds wrong with the words is one line too."""
        code: object
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, False, **extra)
        try:
            code = super().main(args, prog_name, complete_var, False, **extra)
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            code = BAD_INPUT
        except click.UsageError as error:
            path = error.ctx.command_path if error.ctx else "mgvq-export"
            message = " ".join(error.format_message().split()).rstrip(".")
            click.echo(f"error: {message}; see {path} --help", err=True)
            code = BAD_INPUT
        except click.ClickException as error:
            click.echo(f"error: {' '.join(error.format_message().split())}", err=True)
            code = error.exit_code
        except click.Abort:
            code = INTERRUPTED
        except Exception as error:
            line, code = explain(error, "mgvq-export")
            if line:
                click.echo(line, err=True)
        sys.exit(code if isinstance(code, int) else 0)


@click.group(
    "mgvq-export",
    cls=Verbs,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(__version__, prog_name="mgvq-export")
def main() -> None:
    """Take a trained MGVQ image tokenizer to production.

    \b
    mgvq-export demo                            the whole way on the packaged model
    mgvq-export export demo -o bundle           checkpoint -> ONNX graphs
    mgvq-export encode bundle photo.jpg -o out  image -> tokens
    mgvq-export decode bundle out/photo.safetensors -o out
    """


if __name__ == "__main__":
    main(prog_name="mgvq-export")
