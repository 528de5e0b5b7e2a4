"""A process with the stand-in, see `run`."""

import sys

from support.cuda_emulation import _main

_main(*sys.argv[1:])
