"""One conversation of very many tokens: does memory stay flat, speed the same, the state sound?

    python benchmarks/long_run.py dist/RWKV-4-World-Demo-q4f16_1 --tokens 1000000

Asks a few questions over and over at a temperature that makes the model rave, and prints a row
for each block of tokens. At the end of a block the conversation is saved, loaded into another
chat, and both are asked the same: their answers must be the same, and their states to the bit.
Where the output is not a number an answer ends in an error, and so does loading a state with such
values.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import tempfile
import time
from itertools import cycle
from pathlib import Path

from safetensors.numpy import load_file

from mlc_rwkv_world import Chat, Engine, load

QUESTIONS = (
    "What is the capital of France?",
    "Tell me a story, please, with commas, dots, and more.",
    "中国的首都是哪里？",
    "Why? Because, well, who knows: 1, 2, 3, 4, 5.",
)
TEMPERATURE = 3.0
LONGEST_ANSWER = 2000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--blocks", type=int, default=20)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--state", type=Path, help="go on with this conversation, and keep it")
    parser.add_argument("--done", type=int, default=0, help="tokens that --state has decoded")
    options = parser.parse_args()
    engine = load(options.model, options.device)
    chat, twin = conversation(engine), conversation(engine)
    questions = cycle(QUESTIONS)
    if options.state is not None and options.state.exists():
        chat.load(options.state)
    print("| tokens decoded | turns | memory, MB | tok/s | CPU ms per token |")
    print("| ---: | ---: | ---: | ---: | ---: |", flush=True)
    for block in range(1, options.blocks + 1):
        wall, cpu, before = time.perf_counter(), time.process_time(), chat.speed.decode_tokens
        if options.done + before >= (end := options.tokens * block // options.blocks):
            continue
        while options.done + chat.speed.decode_tokens < end:
            answer(chat, next(questions))
        tokens = chat.speed.decode_tokens - before
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        check_saving(chat, twin, next(questions))
        if options.state is not None:
            chat.save(options.state)
        print(
            f"| {options.done + chat.speed.decode_tokens} | {chat.turns} | {memory() / 1e6:.1f} "
            f"| {tokens / wall:.0f} | {1000 * cpu / tokens:.2f} |",
            flush=True,
        )
    return 0


def conversation(engine: Engine) -> Chat:
    sampling = engine.sampling.changed({"temperature": TEMPERATURE, "top_p": 1.0})
    return Chat(engine, sampling=sampling, seed=1, max_tokens=LONGEST_ANSWER)


def answer(chat: Chat, question: str) -> str:
    return "".join(chat.ask(question))


def check_saving(chat: Chat, twin: Chat, question: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        first, second = Path(folder, "first"), Path(folder, "second")
        chat.save(first)
        twin.load(first)
        if answer(chat, question) != answer(twin, question):
            sys.exit("a conversation that was loaded goes on in another way")
        chat.save(first)
        twin.save(second)
        if contents(first) != contents(second):
            sys.exit("a conversation that was loaded has another state after an answer")


def contents(path: Path) -> dict[str, bytes]:
    """The tensors of a state file: the state, the history of penalties, the random generator."""
    return {name: value.tobytes() for name, value in load_file(path).items()}


def memory() -> int:
    """Resident bytes of this process."""
    gc.collect()
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    sys.exit(main())
