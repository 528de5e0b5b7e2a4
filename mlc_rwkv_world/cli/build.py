"""`python -m mlc_llm.build` and `python -m mlc_rwkv_world build`."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mlc_rwkv_world import console
from mlc_rwkv_world.cli import status
from mlc_rwkv_world.reporter import Reporter

if TYPE_CHECKING:
    from mlc_rwkv_world.builder import Artifact

# Options of mlc_llm.build from 2023 that mean nothing for a recurrent model on one device.
_WITHOUT_MEANING = {
    "--num-shards": "the model runs on one device",
    "--use-presharded-weights": "the model runs on one device",
    "--sep-embed": "embedding and model are always separate functions as well",
    "--enable-batching": "batched functions are always built",
    "--use-flash-attn-mqa": "there is no attention",
    "--use-vllm-attention": "there is no attention",
    "--no-cutlass-attn": "there is no attention",
    "--no-cutlass-norm": "kernels are generated, none come from a library",
    "--no-cublas": "kernels are generated, none come from a library",
    "--use-cuda-graph": "decode steps on CUDA are always captured as graphs",
    "--quantization-mode": "--quantization names the whole format",
}


def main(argv: Sequence[str] | None = None, program: str | None = None) -> int:
    """Builds one artifact; returns the exit status."""
    return status.run(_parser(program), _run, argv)


def _parser(program: str | None) -> argparse.ArgumentParser:
    parser = status.Parser(
        prog=program,
        description="Build an RWKV World checkpoint into a model that mlc_chat_cli runs.",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--hf-path",
        metavar="SOURCE",
        help="a Hugging Face folder, a .pth file, or a model on the hub, by name (owner/name) or "
        "address, to download",
    )
    source.add_argument("--model", metavar="NAME", help="a checkpoint in <artifact-path>/models")
    parser.add_argument(
        "--revision",
        metavar="REV",
        help="a branch, tag or commit of the model on the hub; also written owner/name@REV",
    )
    parser.add_argument(
        "--target",
        default="auto",
        help="auto, llvm, cuda, metal, opencl, vulkan, or a full TVM target (default: auto)",
    )
    parser.add_argument(
        "--quantization",
        default="q4f16_1",
        help="q0f32, q0f16, q4f32_1, q4f16_1, q8f32_1 or q8f16_1 (default: q4f16_1)",
    )
    parser.add_argument("--artifact-path", default="dist", metavar="DIR", help="default: dist")
    parser.add_argument("--reuse-lib", metavar="FILE", help="take this library, compile none")
    parser.add_argument(
        "--use-cache",
        type=int,
        choices=(0, 1),
        default=1,
        help="keep lowered modules, as JSON, for the next build of the same library (default: 1)",
    )
    parser.add_argument(
        "--max-seq-len", type=int, help="a limit to record for engines; the model has none"
    )
    parser.add_argument(
        "--prefill-chunk-size",
        type=int,
        default=512,
        help="tokens that one prefill call reads (default: 512)",
    )
    parser.add_argument(
        "--max-batch-size",
        type=int,
        default=8,
        help="sequences that one call reads together (default: 8)",
    )
    parser.add_argument(
        "--fp32-layers",
        metavar="BLOCKS",
        help="blocks that compute in float32 where the format computes in float16: 0, 0,2-5, all, "
        "none, or auto, which measures it (default: what a model of this shape is known to need)",
    )
    parser.add_argument(
        "--compute-dtype",
        default="auto",
        help="auto, float16 or float32; auto is the format's on a GPU and float32 on a CPU, where "
        "float16 is slow and serves to see what it does",
    )
    parser.add_argument(
        "--float16-keys",
        action="store_true",
        help="round the products of att.key and att.value to float16 too, which can overflow",
    )
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--convert-weights-only", action="store_true", help="build no library")
    part.add_argument("--build-model-only", action="store_true", help="convert no weights")
    parser.add_argument(
        "--debug-dump", action="store_true", help="write the module after each phase, as TVMScript"
    )
    parser.add_argument(
        "--system-lib", action="store_true", help="objects to link into a program, as a .tar"
    )
    parser.add_argument(
        "--no-stock",
        action="store_true",
        help="leave out the functions that stock mlc_llm calls: half the library, built sooner",
    )
    parser.add_argument(
        "--use-safetensors",
        action="store_true",
        default=None,
        help="prefer safetensors where a model has several kinds of weights (the default)",
    )
    parser.add_argument(
        "--arithmetic",
        default="auto",
        metavar="HOW",
        help="what a CPU multiplies weights in: auto, int8 (quantized weights; inputs rounded to 8 "
        "bits), bfloat16 (other weights; both sides rounded), float32, or one for each use: "
        "decode=int8,batch=int8,prefill=float32 (default: auto)",
    )
    for option in _WITHOUT_MEANING:
        parser.add_argument(option, nargs="?", const="", help=argparse.SUPPRESS)
    return parser


class _Console(Reporter):
    """Stages as lines; progress as a bar where there is a terminal."""

    def __init__(self) -> None:
        self._bar = console.Bar()

    def stage(self, text: str) -> None:
        self.close()
        console.say(f"{text} ...")

    def progress(self, done: int, total: int, what: str) -> None:
        self._bar.show(done, total, what)

    def close(self) -> None:
        self._bar.close()


def _run(arguments: argparse.Namespace) -> int:
    for option, reason in _WITHOUT_MEANING.items():
        if getattr(arguments, option[2:].replace("-", "_")) is not None:
            console.complain(f"note: {option} has no effect here: {reason}.")

    from mlc_rwkv_world.builder import build

    started = time.monotonic()
    reporter = _Console()
    output = Path(arguments.artifact_path)
    dump = output / "debug" if arguments.debug_dump else None
    try:
        artifact = build(
            arguments.hf_path,
            model=arguments.model,
            revision=arguments.revision,
            target=arguments.target,
            quantization=arguments.quantization,
            output=output,
            max_seq_len=arguments.max_seq_len,
            prefill_chunk_size=arguments.prefill_chunk_size,
            max_batch_size=arguments.max_batch_size,
            fp32_layers=arguments.fp32_layers,
            compute_dtype=arguments.compute_dtype,
            float32_keys=not arguments.float16_keys,
            weights=not arguments.build_model_only,
            library=not arguments.convert_weights_only,
            reuse_lib=arguments.reuse_lib,
            use_cache=bool(arguments.use_cache),
            debug_dump=dump,
            system_lib=arguments.system_lib,
            stock=not arguments.no_stock,
            arithmetic=arguments.arithmetic,
            reporter=reporter,
        )
    finally:
        reporter.close()
    _summarize(artifact, time.monotonic() - started)
    return 0


def _types(artifact: Artifact) -> str:
    from mlc_rwkv_world.model.fp32_layers import spelled

    if artifact.compute_dtype == "float32" or not artifact.fp32_layers:
        return artifact.compute_dtype
    return f"{artifact.compute_dtype}, blocks {spelled(artifact.fp32_layers)} in float32,"


def _summarize(artifact: Artifact, seconds: float) -> None:
    from mlc_rwkv_world.artifact.layout import LIBRARY_ENDINGS
    from mlc_rwkv_world.artifact.search import spelled

    for note in artifact.notes:
        console.say(f"note: {note}")
    console.say(f"Built {artifact.folder} in {seconds:.0f} s")
    if artifact.params.is_dir():
        console.say(
            f"  weights  {artifact.params}  {artifact.nbytes / 1e6:.1f} MB, "
            f"{artifact.bits_per_weight:.2f} bits per weight"
        )
    if artifact.template is not None:
        console.say(f"  template {artifact.template}")
    for path in artifact.libraries:
        console.say(f"  library  {path}  {path.stat().st_size / 1e6:.1f} MB")
    if artifact.libraries:
        console.say(f"  computes in {_types(artifact)} on {artifact.target}")
    if artifact.params.is_dir() and any(
        path.suffix in LIBRARY_ENDINGS for path in artifact.libraries
    ):
        console.say(f"Chat with it:  mlc_chat_cli --model {spelled(artifact.folder)}")
