"""Measurements that outlive a killed run: each row is in a file as soon as it is measured."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class Rows:
    """What was measured so far, in a file that every new row is added to at once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.rows: list[Row] = json.loads(path.read_text()) if path.exists() else []

    def known(self, **key: Any) -> list[Row]:
        return [row for row in self.rows if all(row.get(name) == value for name, value in key.items())]

    def measure(self, measurement: Callable[[], Row], *, repeats: int = 1, **key: Any) -> None:
        """Add what `measurement` returns, so often in all."""
        for _ in range(repeats - len(self.known(**key))):
            row = {**key, **measurement()}
            self.rows.append(row)
            draft = self._path.with_suffix(".new")
            draft.write_text(json.dumps(self.rows, indent=1))
            draft.replace(self._path)
            print(", ".join(f"{k} {v:.2f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()), flush=True)
