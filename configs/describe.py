"""What a config may hold, for people and editors: every key with type, default and meaning, read off the schema."""

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .schema import Config
from .teacher_options import TEACHER_OPTIONS

EXTENDS = (
    "The name or path of another config: this one is then that config with the keys given here in place of its own."
)


@dataclass(frozen=True)
class ConfigKey:
    """One key of a config. `default` is None for a key that must be given."""

    name: str
    type: str
    default: str | None
    meaning: str


@dataclass(frozen=True)
class ConfigGroup:
    """Keys that stand together; `paths` are the places where such a group may stand ("" is the top of the file).

    `of` names the teacher whose options they are.
    """

    paths: tuple[str, ...]
    meaning: str
    keys: tuple[ConfigKey, ...]
    of: str = ""

    @property
    def title(self) -> str:
        """Where the group stands; of an intensity rule also which rule it is."""
        place = ", ".join(filter(None, self.paths)) or "The top of the file"
        rule = next((f" with rule: {key.type}" for key in self.keys if key.name == "rule"), "")
        return place + rule + (f" of {self.of}" if self.of else "")


def json_schema() -> dict[str, Any]:
    """The JSON schema of a config file, `extends` included, for editors that check YAML."""
    schema = Config.model_json_schema()
    schema["properties"] = {"extends": {"type": "string", "description": EXTENDS}, **schema["properties"]}
    schema["anyOf"] = [{"required": ["extends"]}, {"required": schema.pop("required")}]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def config_groups() -> list[ConfigGroup]:
    """Every group of keys, the top of the file first; a group that may stand in several places is listed once."""
    schema = Config.model_json_schema()
    definitions = schema["$defs"]
    places: dict[str, list[str]] = {}
    for path, name in _places(schema, definitions, ""):
        places.setdefault(name, []).append(path)
    extends = ConfigKey("extends", "text", "none", EXTENDS)
    groups = [ConfigGroup(("",), schema["description"], (extends, *_keys(schema)))]
    groups += [
        ConfigGroup(tuple(paths), definitions[name]["description"], _keys(definitions[name]))
        for name, paths in places.items()
    ]
    options = {name: kind.model_json_schema() for name, kind in TEACHER_OPTIONS.items()}
    return groups + [
        ConfigGroup(("teacher.options",), schema["description"], _keys(schema), name)
        for name, schema in options.items()
    ]


def config_keys() -> list[str]:
    """Every key by its dotted path, such as ``student.training.steps``; a group is a key as well."""
    return sorted(
        {
            f"{path}.{key.name}" if path else key.name
            for group in config_groups()
            for path in group.paths
            for key in group.keys
        }
    )


def config_text(*, width: int = 100) -> str:
    """The groups as plain text, for a terminal of `width` columns."""
    lines = []
    for group in config_groups():
        lines.append(f"{group.title}: {group.meaning}")
        for key in group.keys:
            default = "required" if key.default is None else f"default {key.default}"
            lines += textwrap.wrap(
                f"{key.name}: {key.type}; {default}", width, initial_indent=" " * 2, subsequent_indent=" " * 6
            )
            lines += textwrap.wrap(key.meaning, width, initial_indent=" " * 6, subsequent_indent=" " * 6)
        lines.append("")
    return "\n".join(lines).rstrip()


def _places(node: dict[str, Any], definitions: dict[str, Any], path: str) -> Iterator[tuple[str, str]]:
    """(dotted path, name in `definitions`) of every group below a group; a list's path ends in []."""
    for name, field in node.get("properties", {}).items():
        inner = f"{path}.{name}" if path else name
        for group in _references(field):
            yield inner, group
            yield from _places(definitions[group], definitions, inner)
        for group in _references(field.get("items", {})):
            yield f"{inner}[]", group
            yield from _places(definitions[group], definitions, f"{inner}[]")


def _references(field: dict[str, Any]) -> list[str]:
    alternatives = [field, *field.get("anyOf", ()), *field.get("oneOf", ())]
    return [each["$ref"].rpartition("/")[2] for each in alternatives if "$ref" in each]


def _keys(node: dict[str, Any]) -> tuple[ConfigKey, ...]:
    required = node.get("required", ())
    return tuple(
        ConfigKey(name, _type(field), None if name in required else _default(field), field["description"])
        for name, field in node["properties"].items()
    )


def _default(field: dict[str, Any]) -> str:
    value = field["default"]
    if isinstance(value, dict):
        return "its own defaults" if value else "{}"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return '""' if value == "" else str(value)


def _type(field: dict[str, Any]) -> str:
    """A field of a JSON schema in words."""
    if _references(field):
        return "a group" + (" or null" if {"type": "null"} in field.get("anyOf", ()) else "")
    if "anyOf" in field:
        return " or ".join(_type(each) for each in field["anyOf"])
    if "const" in field:
        return f"{field['const']}"
    if "enum" in field:
        return " | ".join(map(str, field["enum"]))
    if field["type"] == "array":
        if "prefixItems" in field:
            return f"a list of {len(field['prefixItems'])}, each {_part(field['prefixItems'][0])}"
        if _references(field["items"]):
            return "a list of groups"
        return f"a list, each {_part(field['items'])}"
    if field["type"] == "object":
        inner = field.get("additionalProperties")
        return f"a mapping, each value {_part(inner)}" if isinstance(inner, dict) else "a mapping"
    words = {
        "string": "text",
        "number": "number",
        "integer": "whole number",
        "boolean": "true or false",
        "null": "null",
    }
    return words[field["type"]] + _bounds(field)


def _part(field: dict[str, Any]) -> str:
    """The type of a list's or mapping's entries, in brackets where a reader could tear it apart."""
    text = _type(field)
    return f"({text})" if " or " in text or "," in text else text


def _bounds(field: dict[str, Any]) -> str:
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {field[key]}" for key, sign in signs.items() if key in field]
    return f" {' and '.join(bounds)}" if bounds else ""
