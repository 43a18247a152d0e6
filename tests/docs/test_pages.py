"""The pages say what is there: commands parse, linked files exist, config keys are known, configs are valid."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from samkd.cli.app import app
from samkd.configs.describe import config_keys
from samkd.configs.load import load_config
from samkd.deploy.runtime.cli import _parser

ROOT = Path(__file__).resolve().parents[2]
GENERATED = {ROOT / "docs" / "reference" / name for name in ("command-line.md", "config.md", "config.schema.json")}
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [page for page in PAGES if page not in GENERATED]
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def code_blocks(page: Path, *languages: str) -> list[str]:
    """The fenced code blocks of a page in one of the languages; "" is a block indented by four spaces."""
    text = page.read_text(encoding="utf-8")
    fenced = re.findall(r"^```(\w*)[^\n]*\n(.*?)^```$", text, re.M | re.S)
    blocks = [code for language, code in fenced if language in languages]
    if "" in languages:
        blocks += re.findall(r"(?:^    [^\n]+\n)+", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S), re.M)
    return blocks


def command_lines(page: Path) -> list[list[str]]:
    """The commands of a page as words: those of its code blocks, and `samkd ...` or `python ...` in its sentences."""
    lines = [line for block in code_blocks(page, "bash", "") for line in block.splitlines()]
    spans = re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S))
    lines += [" ".join(span.split()) for span in spans if re.match(r"(samkd|python) [a-z]", span)]
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


def parse(command: Any, words: list[str], *, name: str) -> None:
    """Parse the words as the command line would, without running the verb."""
    context = command.make_context(name, list(words))
    if hasattr(command, "commands"):
        inner_name, inner, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        parse(inner, rest, name=inner_name)


@each_page
def test_every_command_parses(page: Path):
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
    for words in command_lines(page):
        try:
            if words[0] == "samkd" and words[1:] and not words[1].startswith("-"):
                known = typer.main.get_command(app).commands  # type: ignore[attr-defined]
                if words[1].isupper():
                    continue
                assert words[1] in known, f"{words}: no such verb"
                if len(words) > 2:
                    parse(known[words[1]], words[2:], name=words[1])
            elif words[0] == "python" and words[1] == "runtime.pyz":
                _parser().parse_args(words[2:])
            elif words[0] == "python" and words[1].startswith("benchmarks/"):
                assert (ROOT / words[1]).is_file(), words
            elif words[0] == "make":
                assert words[1] in targets, words
        except Exception as error:
            raise AssertionError(f"{page.name}: {' '.join(words)}: {error!r}") from error
        except SystemExit as end:
            raise AssertionError(f"{page.name}: {' '.join(words)}: exit {end.code}") from end


def test_the_commands_are_found():
    """The test above would pass on pages whose commands it cannot see."""
    verbs = {words[1] for page in PAGES for words in command_lines(page) if words[0] == "samkd" and words[1:]}
    assert {"teach", "distill", "deploy", "predict", "evaluate", "report", "check", "convert", "bench"} <= verbs
    assert ["make", "demo"] in command_lines(ROOT / "README.md")


def test_an_unknown_option_would_be_found():
    with pytest.raises(Exception, match="--nothing"):
        parse(typer.main.get_command(app).commands["teach"], ["--nothing"], name="teach")  # type: ignore[attr-defined]


@each_page
def test_every_link_leads_to_a_file_and_a_heading(page: Path):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if link.startswith(("https://", "http://")):
            continue
        place, _, anchor = link.partition("#")
        target = (page.parent / place).resolve() if place else page
        assert target.is_file() or target in GENERATED, f"{page.name}: {link} does not exist"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.M)
            assert anchor in {re.sub(r"[^\w]+", "-", heading.lower()).strip("-") for heading in headings}, link


@each_page
def test_every_file_named_in_code_exists(page: Path):
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"`((?:configs|benchmarks|tests|volumes|deploy|students|teachers|docs)/[\w./-]+)`", text):
        if "NAME" not in name and page.name != "package.md":  # that page names files of a package
            assert (ROOT / name).exists(), f"{page.name}: {name} does not exist"


@each_page
def test_every_config_key_is_known(page: Path):
    text = re.sub(r"samkd\.[\w.]+", "", page.read_text(encoding="utf-8"))
    named = re.findall(r"(?:--set '?|`)((?:teacher|student|deployment|split|phantom)\.[a-z_.]+)", text)
    assert set(named) <= set(config_keys())


@each_page
def test_every_config_of_a_page_is_valid(page: Path, tmp_path: Path):
    for number, block in enumerate(code_blocks(page, "yaml")):
        path = tmp_path / f"{number}.yaml"
        path.write_text(block, encoding="utf-8")
        assert load_config(str(path)).name == yaml.safe_load(block)["name"]


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_bytes()) <= 7000


def test_the_architecture_page_has_the_import_rule_that_is_tested(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT / "tests"))
    import test_architecture as rule  # pyright: ignore[reportMissingImports]

    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = {}
    for rooms, allowed in re.findall(r"^\| (`[^|]+) \| ([^|]+) \|$", text, re.M):
        named = set(re.findall(r"`([\w.]+)`", allowed.partition(";")[0]))
        if "volumes" in named and "without its datasets" not in allowed:
            named |= rule.DATA
        if "every room" in allowed:
            named |= rule.ROOMS
        table |= {room: named | rule.GROUND for room in re.findall(r"`([\w.]+)`", rooms)}
    entries = {"__init__", "__main__"}  # not rooms
    assert table == {room: set(names) | rule.GROUND for room, names in rule.ALLOWED.items() if room not in entries}


def test_the_map_of_the_architecture_page_is_the_tree():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    parent, shown = "", set()
    for indent, name in re.findall(r"^( *)([\w.]+/?) {2,}", text.partition("```text")[2].partition("```")[0], re.M):
        parent = parent if indent else name
        shown.add((parent + name if indent else name).rstrip("/"))
    assert len(shown) > 20 and all((ROOT / name).exists() for name in shown)
    folders = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert folders <= shown


def test_every_page_is_in_the_navigation_and_every_entry_is_a_page():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    entries = set(re.findall(r"[\w/-]+\.md", navigation.partition("\nnav:")[2]))
    pages = {str(page.relative_to(ROOT / "docs")) for page in PAGES if (ROOT / "docs") in page.parents}
    assert entries == pages | {"reference/command-line.md", "reference/config.md"}


def test_the_site_loads_nothing_from_elsewhere():
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert "font: false" in settings and "http" not in settings
    for page in PAGES:
        assert not re.search(r"!\[[^\]]*\]\(https?:|<script|<iframe", page.read_text(encoding="utf-8")), page


def test_the_reference_pages_can_be_written(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import generate  # pyright: ignore[reportMissingImports]

    verbs, keys = generate.command_line(), generate.config_page()
    assert "## distill" in verbs and "| `--online / --no-online` |" in verbs
    assert "## student.distillation" in keys and "| `temperature` | number > 0; default `1.0` |" in keys
