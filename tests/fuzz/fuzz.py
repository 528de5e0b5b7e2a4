"""Fuzzes one parser for a while.

    PYTHONPATH=tests python tests/fuzz/fuzz.py checkpoint-torch --seconds 900

Guided by coverage where atheris is installed (`pip install atheris`, Linux) and this package too,
not as an editable one, else by seeded mutations alone. Prints what it did; an input that breaks a
promise is written to the current folder and ends the run with its traceback.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from importlib import metadata
from pathlib import Path

from mutation import mutations

# What tests share is found beside this folder.
sys.path.append(str(Path(__file__).parents[1]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target")
    parser.add_argument("--seconds", type=int, default=900)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--hang",
        type=int,
        default=10,
        help="seconds that one input may take; more where this process is stopped at times",
    )
    options = parser.parse_args()
    try:
        import atheris
    except ImportError:
        return _by_mutations(options)
    if _is_editable():
        print("atheris sees no branch of an editable install: give this environment a usual one.")
        return 2
    with atheris.instrument_imports(include=["mlc_rwkv_world"]):
        from fuzz_targets import SEEDS, TARGETS

        # Imported by its target only when it is needed, which would be too late here.
        if options.target == "target-string":
            import mlc_rwkv_world.compiler.target  # noqa: F401
    target = TARGETS[options.target]
    found = Path(f"corpus-{target.name}")
    found.mkdir(exist_ok=True)
    arguments = [
        sys.argv[0],
        str(found),
        str(SEEDS / target.name),
        f"-max_total_time={options.seconds}",
        "-max_len=8192",
        f"-timeout={options.hang}",
        "-rss_limit_mb=2048",
        "-print_final_stats=1",
    ]

    def once(data: bytes) -> None:
        target.run(data)

    atheris.Setup(arguments, once)
    atheris.Fuzz()
    return 0


def _is_editable() -> bool:
    """Whether the package comes by a loader of its own, past which atheris adds its counters."""
    text = metadata.distribution("mlc_rwkv_world").read_text("direct_url.json")
    return bool(text and json.loads(text).get("dir_info", {}).get("editable"))


def _by_mutations(options: argparse.Namespace) -> int:
    from fuzz_targets import TARGETS

    target = TARGETS[options.target]
    end = time.monotonic() + options.seconds
    tried = accepted = 0
    while time.monotonic() < end:
        for data in mutations(target.seeds, 200, options.seed + tried):
            tried += 1
            try:
                accepted += target.run(data)
            except BaseException:
                Path(f"crash-{target.name}").write_bytes(data)
                raise
    print(f"{target.name}: {tried} inputs, {accepted} accepted")
    return 0


if __name__ == "__main__":
    sys.exit(main())
