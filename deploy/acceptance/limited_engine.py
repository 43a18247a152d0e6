"""The process of an engine that keeps to fewer instructions than the machine has: processor._LimitedEngine asks it.

A message is a line of JSON and, as safetensors, so many bytes of arrays as the line says. The first question holds the
arguments of OpenVINO's Engine, every other one the inputs of a patch; the answers are what the engine is, then the
output for a patch and the seconds of the processor that it took.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from safetensors.numpy import load, save

from ...errors import SamkdError
from ..runtime.engine_openvino import Engine


def send(stream: IO[bytes], facts: dict[str, Any], arrays: Sequence[np.ndarray] = ()) -> None:
    """Write one message. Raises OSError where nobody reads it."""
    content = save({str(number): np.ascontiguousarray(array) for number, array in enumerate(arrays)})
    stream.write(json.dumps({**facts, "bytes": len(content)}).encode() + b"\n" + content)
    stream.flush()


def receive(stream: IO[bytes]) -> tuple[dict[str, Any], list[np.ndarray]]:
    """The next message: its facts and arrays. Raises EOFError where there is none, or half of one."""
    line = stream.readline()
    if not line.endswith(b"\n"):
        raise EOFError
    facts = json.loads(line)
    content = stream.read(size := facts.pop("bytes"))
    if len(content) < size:
        raise EOFError
    arrays = load(content)
    return facts, [arrays[str(number)] for number in range(len(arrays))]


def answer_all(questions: IO[bytes], answers: IO[bytes]) -> None:
    """Answer until no question is left. What an engine raises is an answer, too."""
    try:
        job, _ = receive(questions)
        engine = Engine(Path(job.pop("model")), **job)
        send(answers, _facts(engine))
        while True:
            _, inputs = receive(questions)
            started = time.process_time()
            output = engine(*inputs)
            send(answers, {"seconds": time.process_time() - started}, [output])
    except EOFError:
        return
    except SamkdError as error:
        send(answers, {"error": type(error).__name__, "message": str(error)})


def _facts(engine: Engine) -> dict[str, Any]:
    names = ("version", "precision", "threads", "input_shapes", "output_shape")
    layers = {"layer_precisions": engine.layer_precisions(), "implementations": engine.implementations()}
    return {name: getattr(engine, name) for name in names} | layers


def main() -> None:
    """Talk through what were standard input and output: what a library prints goes to standard error."""
    questions, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    answer_all(questions, answers)


if __name__ == "__main__":
    main()
