"""The process of an engine that keeps to fewer instructions than the machine has: processor._LimitedEngine asks it.

Questions and answers are pickled: both ends are one program. First the arguments of OpenVINO's Engine, then
the inputs of a patch, each answered with the output and the seconds of the processor it took.
"""

from __future__ import annotations

import os
import pickle
import sys
import time
from typing import IO, Any

from ...errors import SamkdError
from ..runtime.engine_openvino import Engine


def answer_all(questions: IO[bytes], answers: IO[bytes]) -> None:
    """Answer until no question is left. What an engine raises is an answer, too."""

    def answer(value: Any) -> None:
        pickle.dump(value, answers, protocol=pickle.HIGHEST_PROTOCOL)
        answers.flush()

    try:
        job = pickle.load(questions)
        engine = Engine(job.pop("model"), **job)
        answer(_facts(engine))
        while True:
            inputs = pickle.load(questions)
            started = time.process_time()
            answer((engine(*inputs), time.process_time() - started))
    except EOFError:
        return
    except SamkdError as error:
        answer(error)


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
