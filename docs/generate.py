"""Write the pages of the reference that samkd itself knows best: the command line, and the keys of a config.

`make docs` runs this before MkDocs. The two pages are not kept in the repository, so they cannot be out of date.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from samkd.cli.app import app
from samkd.configs.describe import config_groups, json_schema

REFERENCE = Path(__file__).parent / "reference"
GENERATED = ("command-line.md", "config.md", "config.schema.json")


def command_line() -> str:
    """The page of the verbs: usage, help, arguments and options of each."""
    lines = ["# Command line", "", "`samkd VERB --help` prints the same."]
    for path, command in _commands(typer.main.get_command(app), ()):
        context = command.make_context(" ".join(("samkd", *path)), [], resilient_parsing=True)
        usage = " ".join(command.collect_usage_pieces(context))
        lines += ["", f"## {' '.join(path)}", "", f"`samkd {' '.join(path)} {usage}`", "", command.help or ""]
        records = [param.get_help_record(context) for param in command.get_params(context)]
        rows = [(_cell(name), _cell(text)) for name, text in filter(None, records) if "--help" not in name]
        if rows:
            lines += ["", "| argument or option | what it means |", "|---|---|"]
            lines += [f"| `{name}` | {text} |" for name, text in rows]
    return "\n".join(lines) + "\n"


def config_page() -> str:
    """The page of the config's keys, a table for each group of keys."""
    lines = ["# Config", "", "Every key that a config may hold; `samkd info config` prints the same."]
    lines += ["The JSON schema, for editors that check YAML, is [config.schema.json](config.schema.json)."]
    for group in config_groups():
        lines += [
            "",
            f"## {group.title}",
            "",
            group.meaning,
            "",
            "| key | type and default | meaning |",
            "|---|---|---|",
        ]
        for key in group.keys:
            default = "**required**" if key.default is None else f"default `{_cell(key.default)}`"
            lines.append(f"| `{key.name}` | {_cell(key.type)}; {default} | {_cell(key.meaning)} |")
    return "\n".join(lines) + "\n"


def _commands(command: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(words after `samkd`, command) of every verb, those inside a group after their group."""
    for name, inner in getattr(command, "commands", {}).items():
        yield (*path, name), inner
        yield from _commands(inner, (*path, name))


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


if __name__ == "__main__":
    pages = (command_line(), config_page(), json.dumps(json_schema(), indent=1) + "\n")
    for name, text in zip(GENERATED, pages, strict=True):
        (REFERENCE / name).write_text(text, encoding="utf-8")
