"""A process with the stand-in, see `run`."""

import sys

from mlc_rwkv_world.cli.start import start

start()

from support.cuda_emulation import _main  # noqa: E402 (it imports TVM)

_main(*sys.argv[1:])
