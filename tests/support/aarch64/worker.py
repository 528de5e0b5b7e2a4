"""Runs an artifact where it was started, and answers what `support.aarch64.Engine` asks."""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np

import mlc_rwkv_world as world


def main(artifact: str, library: str) -> None:
    engine = world.load(artifact, model_lib=library, threads=1)
    states: list[world.State] = []

    def named(number: Any) -> Any:
        return [states[i] for i in number] if isinstance(number, list) else states[number]

    for line in sys.stdin:
        method, *arguments = json.loads(line)
        answer: Any = 0
        if method == "new_state":
            states.append(engine.new_state())
            answer = len(states) - 1
        else:
            given, number = arguments
            if method in ("save", "load"):
                getattr(states[number], method)(given)
            elif method == "numpy":
                answer = states[number].numpy().reshape(1, -1)
            elif method == "tokens_read":
                answer = states[number].tokens_read
            else:
                answer = getattr(engine, method)(given, named(number))
        matrix = np.atleast_2d(answer).astype(np.float32)
        sys.stdout.buffer.write(json.dumps(matrix.shape).encode() + b"\n" + matrix.tobytes())
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
