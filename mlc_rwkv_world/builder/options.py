"""A build's options, each once: its default, what may be said, and how the command line says it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any

from mlc_rwkv_world.artifact.places import expanded
from mlc_rwkv_world.artifact.templates import TEMPLATES, template_named
from mlc_rwkv_world.errors import UsageError
from mlc_rwkv_world.model.config import DEFAULT_MAX_BATCH, DEFAULT_PREFILL_CHUNK
from mlc_rwkv_world.model.fp32_layers import parse

# Measures instead of naming blocks.
AUTO = "auto"
# More than any model has: for options that are looked at before the model is.
_MOST_BLOCKS = 1 << 16
_KEY = "option"

Check = Callable[[str, Any], None]


@dataclasses.dataclass(frozen=True)
class Flag:
    """How the command line says an option.

    `sets` is what the flag alone gives; without it, a value follows, which `convert` reads and
    which has to be one of `choices`, if there are any. Of the flags of a `group` one may be given.
    `help` shows the default where it says `{default}`. `check` raises UsageError for a value that
    no build can have, however it was said.
    """

    name: str
    help: str
    metavar: str | None = None
    sets: bool | None = None
    convert: Callable[[str], Any] = str
    choices: Sequence[Any] | None = None
    group: str | None = None
    check: Check | None = None


def _flag(name: str, help: str, **more: Any) -> dict[str, Flag]:
    """The metadata of a field of Options."""
    return {_KEY: Flag(name, help, **more)}


def _at_most(most: int) -> Check:
    """What a library can be planned for without its memory or its numbers running over."""

    def check(name: str, value: int | None) -> None:
        if value is not None and value < 1:
            raise UsageError(f"{name} is {value}; it must be at least 1.")
        if value is not None and value > most:
            raise UsageError(f"{name} is {value}; it can be {most} at most.")

    return check


def _blocks(_: str, value: str | None) -> None:
    if value not in (None, AUTO):
        parse(value, _MOST_BLOCKS)


def _dtype(_: str, value: str) -> None:
    if value not in (AUTO, "float16", "float32"):
        raise UsageError(f"--compute-dtype {value!r}: give auto, float16 or float32.")


def _template(_: str, value: str | None) -> None:
    if value is not None:
        template_named(value)


# Groups of flags: a build has one source, and leaves out one part at most.
SOURCE = "source"
_PART = "part"


@dataclasses.dataclass(frozen=True)
class Options:
    """How to build an artifact, and from what.

    `source` is a folder, a `.pth` file or a model on the hub, by name or address; `model` instead
    names a checkpoint in `<output>/models`. What `weights` or `library` leaves out is kept of an
    older artifact, as are its libraries for other targets. With `debug_dump`, a folder or True for
    `<output>/debug`, the module after each phase is written there. `arithmetic` is said at once or
    for each use, "decode=int8,batch=int8,prefill=float32".

    `compute_dtype` "auto" is the format's type on a GPU and float32 on a CPU; "float16" on a CPU
    rounds every operation's result to float16, as a GPU does. `fp32_layers` compute in float32 all
    the same, with products in float32 whatever `arithmetic` says of the others.

    Raises UsageError for a value that no build can have.
    """

    source: str | Path | None = field(
        default=None,
        metadata=_flag(
            "--hf-path",
            "a Hugging Face folder, a .pth file, or a model on the hub, by name (owner/name) or "
            "address, to download",
            metavar="SOURCE",
            group=SOURCE,
        ),
    )
    model: str | None = field(
        default=None,
        metadata=_flag(
            "--model", "a checkpoint in <artifact-path>/models", metavar="NAME", group=SOURCE
        ),
    )
    revision: str | None = field(
        default=None,
        metadata=_flag(
            "--revision",
            "a branch, tag or commit of the model on the hub; also written owner/name@REV",
            metavar="REV",
        ),
    )
    target: str = field(
        default=AUTO,
        metadata=_flag(
            "--target",
            "auto, llvm, cuda, metal, opencl, vulkan, webgpu, or a full TVM target (default: "
            "{default})",
        ),
    )
    quantization: str = field(
        default="q4f16_1",
        metadata=_flag(
            "--quantization",
            "q0f32, q0f16, q4f32_1, q4f16_1, q8f32_1 or q8f16_1 (default: {default})",
        ),
    )
    output: str | Path = field(
        default="dist", metadata=_flag("--artifact-path", "default: {default}", metavar="DIR")
    )
    reuse_lib: str | Path | None = field(
        default=None,
        metadata=_flag("--reuse-lib", "take this library, compile none", metavar="FILE"),
    )
    use_cache: bool = field(
        default=True,
        metadata=_flag(
            "--use-cache",
            "keep lowered modules, as JSON, for the next build of the same library "
            "(default: {default:d})",
            convert=int,
            choices=(0, 1),
        ),
    )
    max_seq_len: int | None = field(
        default=None,
        metadata=_flag(
            "--max-seq-len",
            "a limit to record for engines; the model has none",
            convert=int,
            check=_at_most((1 << 31) - 1),
        ),
    )
    prefill_chunk_size: int = field(
        default=DEFAULT_PREFILL_CHUNK,
        metadata=_flag(
            "--prefill-chunk-size",
            "tokens that one prefill call reads (default: {default})",
            convert=int,
            check=_at_most(1 << 16),
        ),
    )
    max_batch_size: int = field(
        default=DEFAULT_MAX_BATCH,
        metadata=_flag(
            "--max-batch-size",
            "sequences that one call reads together (default: {default})",
            convert=int,
            check=_at_most(1 << 12),
        ),
    )
    fp32_layers: str | None = field(
        default=None,
        metadata=_flag(
            "--fp32-layers",
            "blocks that compute in float32 where the format computes in float16: 0, 0,2-5, all, "
            "none, or auto, which measures it (default: what a model of this shape is known to "
            "need)",
            metavar="BLOCKS",
            check=_blocks,
        ),
    )
    compute_dtype: str = field(
        default=AUTO,
        metadata=_flag(
            "--compute-dtype",
            "auto, float16 or float32; auto is the format's on a GPU and float32 on a CPU, where "
            "float16 is slow and serves to see what it does",
            check=_dtype,
        ),
    )
    float32_keys: bool = field(
        default=True,
        metadata=_flag(
            "--float16-keys",
            "round the products of att.key and att.value to float16 too, which can overflow",
            sets=False,
        ),
    )
    library: bool = field(
        default=True,
        metadata=_flag("--convert-weights-only", "build no library", sets=False, group=_PART),
    )
    weights: bool = field(
        default=True,
        metadata=_flag("--build-model-only", "convert no weights", sets=False, group=_PART),
    )
    debug_dump: str | Path | bool | None = field(
        default=None,
        metadata=_flag(
            "--debug-dump", "write the module after each phase, as TVMScript", sets=True
        ),
    )
    system_lib: bool = field(
        default=False,
        metadata=_flag("--system-lib", "objects to link into a program, as a .tar", sets=True),
    )
    template: str | None = field(
        default=None,
        metadata=_flag(
            "--template",
            f"how conversations are written: {', '.join(TEMPLATES)} (default: what the checkpoint "
            "was trained for, by its version and name)",
            metavar="NAME",
            check=_template,
        ),
    )
    stock: bool = field(
        default=True,
        metadata=_flag(
            "--no-stock",
            "leave out the functions that stock mlc_llm calls: half the library, built sooner",
            sets=False,
        ),
    )
    prefer_safetensors: bool = field(
        default=True,
        metadata=_flag(
            "--use-safetensors",
            "prefer safetensors where a model has several kinds of weights (the default)",
            sets=True,
        ),
    )
    arithmetic: str = field(
        default=AUTO,
        metadata=_flag(
            "--arithmetic",
            "what a CPU multiplies weights in: auto, int8 (quantized weights; inputs rounded to 8 "
            "bits), bfloat16 (other weights; both sides rounded), float32, or one for each use: "
            "decode=int8,batch=int8,prefill=float32 (default: {default})",
            metavar="HOW",
        ),
    )

    def __post_init__(self) -> None:
        if not (self.weights or self.library):
            raise UsageError("nothing to build: both the weights and the library were left out.")
        if self.template is not None and not self.weights:
            raise UsageError(
                "--template is written beside the weights, which this build leaves out. Give it to "
                "mlc_chat_cli, or build them too."
            )
        for name, flag in flags():
            if flag.check is not None:
                flag.check(name, getattr(self, name))

    @property
    def dump(self) -> Path | None:
        """The folder for modules, if they are to be written."""
        if self.debug_dump is True:
            return expanded(self.output) / "debug"
        return expanded(self.debug_dump) if self.debug_dump else None


def flags() -> Iterator[tuple[str, Flag]]:
    """Each option's name as a keyword, and its flag."""
    for option in dataclasses.fields(Options):
        flag: Flag = option.metadata[_KEY]
        help = flag.help.format(default=option.default)
        yield option.name, dataclasses.replace(flag, help=help)
