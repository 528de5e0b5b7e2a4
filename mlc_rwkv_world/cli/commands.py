"""The commands of `rwkv-world`: each is the module of its name, with `main` and `parser`."""

from __future__ import annotations

COMMANDS = {
    "build": "build an artifact from a checkpoint",
    "chat": "talk with a built model",
    "complete": "go on with a text",
    "serve": "serve a built model as OpenAI's interface, with a page",
    "list": "show checkpoints and built models",
    "pull": "download a checkpoint",
    "remove": "remove a built model or a downloaded checkpoint",
    "bench": "measure a model's speed beside this machine's limits",
    "inspect": "show a model's values, and which blocks need float32",
    "perplexity": "measure how well a model predicts a text",
    "verify": "check the files of a built model",
    "doctor": "show TVM, mlc_llm, and what is registered with it",
    "completion": "print what makes a shell complete these commands",
}
