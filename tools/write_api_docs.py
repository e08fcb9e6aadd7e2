"""Writes docs/api.md from the docstrings of the public names: python -m mgvq_export.tools.write_api_docs (a test holds the file to it)."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mgvq_export
from mgvq_export import ops

TARGET = Path(__file__).parents[1] / "docs" / "api.md"

HEAD = """# The Python interface

Written from the docstrings by `python -m mgvq_export.tools.write_api_docs`; a test compares them.

`import mgvq_export` loads no backend; each name loads what it needs when it is first used. Sizes in Python are (height, width). Errors that a
caller can act on are subclasses of `mgvq_export.core.errors.MgvqError`, with one line that says what was wrong and what to do.
"""
_SECTIONS = ("Args", "Attributes", "Returns", "Raises", "Yields")


def api_docs() -> str:
    """The whole page: every name of ``mgvq_export.__all__``, then those of ``mgvq_export.ops`` for people with sessions of their own."""
    entries = [(name, getattr(mgvq_export, name)) for name in sorted(mgvq_export.__all__, key=str.lower)]
    entries.append(("ops.register_ort_kernels", ops.register_ort_kernels))
    contents = [f"- [`{name}`](#{_anchor(name)}): {_summary(value)}" for name, value in entries]
    return "\n".join([HEAD, *contents, "", *(line for name, value in entries for line in _entry(name, value))]).rstrip() + "\n"


def _entry(name: str, value: Any) -> Iterator[str]:
    yield f"## {name}\n"
    if not inspect.isclass(value):
        yield _signature(name.split(".")[-1], value)
        yield _text(value)
        return
    fields = {field.name for field in dataclasses.fields(value)} if dataclasses.is_dataclass(value) else set()
    if fields:
        yield _signature(name, value)
    yield _text(value)
    for inner, member in vars(value).items():
        if inner.startswith("_") or inner in fields or not inspect.getdoc(member):
            continue
        yield f"### {name}.{inner}\n"
        function = getattr(member, "__func__", member)
        if inspect.isfunction(function):
            yield _signature(f"{name}.{inner}" if function is not member else inner, function)
        yield _text(member)


def _signature(name: str, value: Any) -> str:
    """A Python block, one parameter a line where it is long."""
    signature = inspect.signature(value)
    parameters = [each for each in signature.parameters.values() if each.name not in ("self", "cls")]
    signature = signature.replace(parameters=[each.replace(default=_shown_default(each.default)) for each in parameters])
    line = f"{name}{signature}".replace("'", "")
    if len(line) > 100:
        stars = any(each.kind is each.KEYWORD_ONLY for each in parameters)
        shown, starred = [], False
        for each in signature.parameters.values():
            if stars and each.kind is each.KEYWORD_ONLY and not starred:
                shown, starred = [*shown, "    *,"], True
            shown.append(f"    {each},".replace("'", ""))
        returned = signature.return_annotation
        arrow = "" if returned is inspect.Signature.empty else f" -> {returned}".replace("'", "")
        line = "\n".join([f"{name}(", *shown, f"){arrow}"])
    return f"```python\n{line}\n```\n"


class _Shown:
    def __init__(self, text: str):
        self.text = text

    def __repr__(self) -> str:
        return self.text


def _shown_default(default: Any) -> Any:
    if default is inspect.Parameter.empty or isinstance(default, (bool, int, float, tuple, type(None))):
        return default
    if isinstance(default, str):
        return _Shown(f'"{default}"')
    return _Shown("...")  # its repr would hold an address


def _summary(value: Any) -> str:
    return _plain((inspect.getdoc(value) or "").split("\n\n")[0].replace("\n", " ").removesuffix(" ::"))


def _plain(text: str) -> str:
    """reStructuredText roles and literals as Markdown."""
    text = re.sub(r":\w+:`~?([\w.]+)`", lambda found: f"`{found[1].removeprefix('mgvq_export.')}`", text)
    return text.replace("``", "`")


def _text(value: Any) -> str:
    """A docstring as Markdown: sections in bold, their entries as a list, examples as code."""
    lines: list[str] = []
    section = code = False
    for line in _plain(inspect.getdoc(value) or "").splitlines():
        bare = line.strip()
        if code and bare and not line.startswith("    "):
            lines, code = [*_closed(lines), ""], False
        if bare.removesuffix(":") in _SECTIONS and bare.endswith(":"):
            lines += [f"**{bare}**", ""]
            section = True
        elif code:
            lines.append(line.removeprefix("    "))
        elif line.endswith("::"):
            before = line.removesuffix("::").rstrip()
            lines += [*([before] if before else []), "", "```python"]
            code = True
        elif section and re.match(r"    \S", line):
            lines.append(re.sub(r"^    ([\w, *()|]+):(?: |$)", r"- `\1`: ", line) if ":" in line else bare)
        elif section and not line.startswith(" ") and bare:
            section = False
            lines.append(line)
        else:
            lines.append(f"  {bare}" if section and bare else line)
    if code:
        lines = _closed(lines)
    return "\n".join(lines).replace("```python\n\n", "```python\n").strip() + "\n"


def _closed(lines: list[str]) -> list[str]:
    """``lines`` with the open code block ended, blank lines before the end aside."""
    while lines and not lines[-1]:
        lines = lines[:-1]
    return [*lines, "```"]


def _anchor(name: str) -> str:
    return name.lower().replace(".", "")


if __name__ == "__main__":
    TARGET.write_text(api_docs(), encoding="utf-8")
    print(TARGET)
