"""Run `samkd` verbs as a user would, from the environment of the running Python."""

import os
import subprocess
import sys
from pathlib import Path


def samkd(*arguments: object) -> None:
    """One verb, printed first. CalledProcessError when it fails."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    print("samkd", *arguments, flush=True)
    subprocess.run([Path(sys.executable).with_name("samkd"), *map(str, arguments)], check=True)


def settings(**values: object) -> list[str]:
    """`--set` words: a double underscore is a dot, so student__training__steps=400."""
    return [word for key, value in values.items() for word in ("--set", f"{key.replace('__', '.')}={value}")]
