"""Reading YAML that a user, a crash or an attacker may have written."""

from pathlib import Path
from typing import Any

import yaml

from ..errors import BadInputError

MAX_BYTES = 16 << 20
MAX_VALUES = 1_000_000  # with every alias written out: ten lines of aliases can stand for 10^10
MAX_DEPTH = 100


def read_yaml(path: Path) -> Any:
    """The values of a YAML file in UTF-8. Raises BadInputError for what is no file or no YAML."""
    if not path.is_file():
        raise BadInputError(f"{path}: no such file; expected a YAML file")
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"larger than {MAX_BYTES >> 20} MB")
        return parse_yaml(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise BadInputError(f"{path}: cannot be read ({error.strerror or error})") from None
    except ValueError as error:
        raise BadInputError(f"{path}: not valid YAML: {error}") from None


def parse_yaml(text: str) -> Any:
    """Plain values of YAML text; no tag runs code.

    Raises ValueError, with one line, also where PyYAML raises something else (`!!int abc`, `2020-13-45`), for aliases
    that stand for more than MAX_VALUES values or for themselves, and for nesting deeper than MAX_DEPTH.
    """
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _count(node, 0, {})
        return loader.construct_document(node)
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from None
    except RecursionError:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels") from None


def _count(node: yaml.Node, depth: int, counts: dict[int, int]) -> int:
    """The values that a node stands for, in time that grows with the text; ``counts`` holds those of nodes seen."""
    if depth > MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels, or an alias within itself")
    if id(node) not in counts:
        children = node.value if isinstance(node, yaml.CollectionNode) else ()
        if isinstance(node, yaml.MappingNode):
            children = [part for pair in children for part in pair]
        counts[id(node)] = 1 + sum(_count(child, depth + 1, counts) for child in children)
    if counts[id(node)] > MAX_VALUES:
        raise ValueError(f"its aliases stand for more than {MAX_VALUES} values")
    return counts[id(node)]
