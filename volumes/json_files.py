"""Reading JSON that somebody else, a crash or an attacker may have written."""

import json
from pathlib import Path
from typing import Any

from ..errors import BadInputError
from .files import regular_file

MAX_BYTES = 256 << 20


def read_json(path: Path) -> Any:
    """The content of a JSON file in UTF-8, UTF-16 or UTF-32, byte order mark or not. Raises BadInputError.

    Nesting deeper than Python's recursion, halves of surrogate pairs (which could neither be shown nor opened), and
    files larger than MAX_BYTES are refused.
    """
    try:
        if regular_file(path).stat().st_size > MAX_BYTES:
            raise ValueError(f"larger than {MAX_BYTES >> 20} MB")
        return parse_json(path.read_bytes())
    except OSError as error:
        raise BadInputError(f"{path}: cannot be read ({error.strerror or error}).") from error
    except BadInputError:
        raise
    except (ValueError, RecursionError) as error:
        raise BadInputError(f"{path}: is not valid JSON ({error}).") from error


def parse_json(text: str | bytes) -> Any:
    """JSON values. Raises ValueError, or RecursionError for text that is nested too deeply."""
    content = json.loads(text)
    json.dumps(content, ensure_ascii=False).encode()
    return content
