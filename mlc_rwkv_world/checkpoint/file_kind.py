"""What a weight file is, told by its first bytes and never by its name."""

from __future__ import annotations

import json
import pickle
import shlex
from pathlib import Path
from typing import Literal

from mlc_rwkv_world.checkpoint.origin import fetch_again
from mlc_rwkv_world.errors import CheckpointError

Kind = Literal["torch", "safetensors"]

_PEEK = 512

# torch before 1.6 began its files with this number, pickled.
_OLD_TORCH = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)

_FOREIGN = (
    (b"version https://git-lfs", "a git-lfs pointer, not the weights it points to: run `git lfs "
     "pull` in its folder, or download the file itself"),
    (b"GGUF", "a GGUF file of llama.cpp; give the checkpoint that it was converted from"),
    (b"fmgg", "a ggml file of rwkv.cpp; give the checkpoint that it was converted from"),
    (b"lmgg", "a ggml file; give the checkpoint that it was converted from"),
    (b"\x1f\x8b", "gzip-compressed: unpack it first"),
    (b"7z\xbc\xaf", "a 7z archive: unpack it first"),
    (b"\x93NUMPY", "a NumPy array, not a checkpoint"),
    (b"\x89HDF", "an HDF5 file (Keras); RWKV checkpoints come from PyTorch"),
)  # fmt: skip


def kind_of(path: Path) -> Kind:
    """Tells torch's zip layout from safetensors.

    Raises CheckpointError, saying what `path` is, where it is neither.
    """
    try:
        # A pipe or a device would block or never end.
        if not path.is_file():
            raise CheckpointError(f"{path} is not a regular file, expected a checkpoint.")
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(_PEEK)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    if head.startswith(b"PK\x03\x04"):
        return "torch"
    if len(head) >= 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 40:
        return "safetensors"
    raise CheckpointError(f"{path} {_explain(path, head, size)}")


def resave_command(path: Path, part: str = "") -> str:
    """The shell command that saves the tensors in `path` (indexed by `part`) as we read them."""
    source, target = json.dumps(str(path)), json.dumps(str(path.with_suffix(".resaved.pth")))
    load = f'torch.load({source}, map_location="cpu", weights_only=True){part}'
    return "python -c " + shlex.quote(f"import torch; torch.save({load}, {target})")


def _explain(path: Path, head: bytes, size: int) -> str:
    for magic, what in _FOREIGN:
        if head.startswith(magic):
            return f"is {what}."
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if size == 0:
        return f"is empty (0 bytes): the download or copy did not happen. {fetch_again(path)}"
    if head.startswith(_OLD_TORCH) or head[257:262] == b"ustar":
        return (
            "is in torch's old layout (before 1.6), which only torch can read. Save it again: "
            + resave_command(path)
        )
    if text.startswith(b"<"):
        return (
            "is a web page (HTML), not weights: the address gave a page instead of the file. "
            "Download it by the file's own link."
        )
    if text.startswith((b"{", b"[")):
        return (
            f"is JSON text, not weights: perhaps a server's error or an index. {fetch_again(path)}"
        )
    if head.startswith(b"\x80") and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return (
            "is a bare Python pickle, which is not opened: pickles can run programs. Save the "
            "tensors with torch.save or safetensors."
        )
    if not head.strip(b"\0"):
        return f"begins with zeros only: a download that was not finished. {fetch_again(path)}"
    return (
        f"begins with {head[:8]!r} and is {size} bytes long; expected a torch file (.pth, .bin) "
        "or safetensors."
    )
