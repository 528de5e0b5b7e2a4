"""How many threads compiled code runs on.

TVM makes a pool for each thread that calls it, at its first use, of as many threads as
TVM_NUM_THREADS says then, or else OMP_NUM_THREADS; without them, of half as many as there are
processors, which is wrong where a core has one. Later only fewer can be used. It takes any number,
and hangs or ends the process where that is too high.
"""

from __future__ import annotations

import ctypes
import os
import re
from pathlib import Path

from mlc_rwkv_world.errors import UsageError
from mlc_rwkv_world.runtime import tvm_runtime

VARIABLE = "TVM_NUM_THREADS"
# How TVM's pool waits, unless the environment says otherwise. Its threads are free to leave a core
# that another process takes; and an idle one yields its core so many times, which bridges the gap
# between two kernels, before it sleeps: waking it takes longer. TVM's own are bound, and yield
# 300000 times: beside a busy process each time costs a slice of its time, and the end of the
# process waits for all of them.
_WAITING = {"TVM_BIND_THREADS": "0", "TVM_THREAD_POOL_SPIN_COUNT": "60"}
_TOPOLOGY = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
# Of TVM's ways to place threads: on the fastest cores.
_FASTEST = 1


def physical_cores() -> int:
    """Cores that this process may use; processors where the system does not tell them apart."""
    if not hasattr(os, "sched_getaffinity"):
        return max(1, os.cpu_count() or 1)
    processors = os.sched_getaffinity(0)
    try:
        cores = {Path(_TOPOLOGY.format(p)).read_text() for p in processors}
    except OSError:
        return len(processors)
    return max(1, len(cores))


def most() -> int:
    """Threads that this machine is asked for at most; more than processors gain nothing."""
    return max(64, 4 * (os.cpu_count() or 1))


def use(count: int | None) -> int:
    """Run this thread's calls on `count` threads; None: TVM_NUM_THREADS, else physical cores.

    Returns the number asked of TVM; it has fewer where its pool was made smaller before. Raises
    UsageError for less than one thread, or for more than `most`; the variable is left out then.
    """
    if count is not None and count < 1:
        raise UsageError(f"{count} threads: there has to be at least 1.")
    if count is not None and count > most():
        raise UsageError(
            f"{count} threads: this machine has {os.cpu_count()} processors; give at most {most()}."
        )
    given = os.environ.get(VARIABLE, "")
    named = int(given) if re.fullmatch("[1-9][0-9]{0,5}", given) else most() + 1
    if named > most():
        named = physical_cores()
        # More than wanted now, so that another engine can ask for them.
        os.environ[VARIABLE] = str(max(count or 1, named))
    count = count or named
    for name, value in _WAITING.items():
        os.environ.setdefault(name, value)
    tvm_runtime.function("runtime.config_threadpool")(_FASTEST, count)
    return count


def launcher() -> int:
    """The address of TVM's function that runs tasks on the calling thread's pool, for C++."""
    function = tvm_runtime.library().TVMBackendParallelLaunch
    return ctypes.cast(function, ctypes.c_void_p).value or 0
