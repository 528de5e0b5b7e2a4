"""`python -m mlc_llm.build`, the command that RWKV World users know from 2023.

This file is a namespace portion: Python finds it with stock mlc_llm installed or without.
"""

import sys

from mlc_rwkv_world.cli.build import main
from mlc_rwkv_world.cli.start import start

if __name__ == "__main__":
    start()
    sys.exit(main(program="python -m mlc_llm.build"))
