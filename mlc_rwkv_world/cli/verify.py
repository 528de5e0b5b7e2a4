"""`python -m mlc_rwkv_world verify MODEL`: is every file as it was built?"""

from __future__ import annotations

from collections.abc import Sequence

from mlc_rwkv_world import console
from mlc_rwkv_world.cli import status
from mlc_rwkv_world.errors import ArtifactError


def main(argv: Sequence[str] | None = None, program: str | None = None) -> int:
    """Checks one artifact; returns the exit status, 6 where a file is damaged."""
    return status.run(parser(program), lambda options: _run(options.model), argv)


def parser(program: str | None = None) -> status.Parser:
    """What the command takes."""
    parser = status.Parser(
        prog=program, description="Read every file of an artifact and compare its checksum."
    )
    parser.add_argument("model", help="name, folder, params folder or mlc-chat-config.json")
    return parser


def _run(model: str) -> int:
    from mlc_rwkv_world.artifact.search import find
    from mlc_rwkv_world.runtime.verify import has_checksums, verify

    found = find(model)
    faults: dict[str, str] = {}
    sound: set[str] = set()
    for verdict in verify(found):
        path = str(verdict.path)
        if verdict.fault is not None:
            # The first fault of a file is the most telling one.
            if faults.setdefault(path, verdict.fault) is verdict.fault:
                console.say(f"FAULT  {path}: {verdict.fault}")
        elif not verdict.listed:
            console.say(f"note: {path} is not listed in SHA256SUMS, and no part of the artifact")
        else:
            sound.add(path)
    if faults:
        raise ArtifactError(
            f"{len(faults)} of {len(faults | dict.fromkeys(sound))} files of {found.folder} are "
            "not as they were built. Build or copy the artifact again."
        )
    console.say(f"{found.folder}: {len(sound)} files, all sound")
    if not has_checksums(found):
        console.say(
            "note: it has no SHA256SUMS, which our builds write: the shards match the index, and "
            "the other files could only be read. A library in it runs only where --model-lib "
            "names it."
        )
    return 0
