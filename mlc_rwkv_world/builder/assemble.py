"""The build itself: every part of an artifact is written, then all of it appears at once."""

from __future__ import annotations

import dataclasses
import shutil
from math import prod
from pathlib import Path

from mlc_rwkv_world.artifact import registry
from mlc_rwkv_world.artifact.atomic import replacing_folder
from mlc_rwkv_world.artifact.checksums import write_checksums
from mlc_rwkv_world.artifact.index import ParameterIndex
from mlc_rwkv_world.artifact.layout import PARAMS_DIR
from mlc_rwkv_world.artifact.places import expanded
from mlc_rwkv_world.artifact.search import Found
from mlc_rwkv_world.artifact.storage import storing
from mlc_rwkv_world.builder.choices import choose
from mlc_rwkv_world.builder.older import Stamp, bring_later, carry_over, kept_checksums
from mlc_rwkv_world.builder.plan import Plan, make_plan
from mlc_rwkv_world.builder.reuse import check_reusable
from mlc_rwkv_world.checkpoint import (
    find_model,
    find_vocabulary,
    open_checkpoint,
    resolve_source,
)
from mlc_rwkv_world.compiler import library as code
from mlc_rwkv_world.compiler import pipeline
from mlc_rwkv_world.compiler.cache import ModuleCache, cache_folder
from mlc_rwkv_world.compiler.export import export
from mlc_rwkv_world.convert.chat_config import (
    record_precision,
    write_chat_config,
    write_vocabulary,
)
from mlc_rwkv_world.convert.weights import convert
from mlc_rwkv_world.errors import NotFoundError, UsageError
from mlc_rwkv_world.model.config import DEFAULT_MAX_BATCH, DEFAULT_PREFILL_CHUNK, ModelConfig
from mlc_rwkv_world.model.fp32_layers import spelled
from mlc_rwkv_world.reporter import Reporter

MODELS_DIR = "models"


@dataclasses.dataclass(frozen=True)
class Artifact:
    """What a build wrote. `libraries` holds the library, and what else compiling left."""

    name: str
    folder: Path
    params: Path
    libraries: tuple[Path, ...]
    quantization: str
    target: str
    compute_dtype: str
    fp32_layers: tuple[int, ...]
    nbytes: int
    bits_per_weight: float
    notes: tuple[str, ...] = ()


def build(
    source: str | Path | None = None,
    *,
    model: str | None = None,
    revision: str | None = None,
    target: str = "auto",
    quantization: str = "q4f16_1",
    output: str | Path = "dist",
    max_seq_len: int | None = None,
    prefill_chunk_size: int = DEFAULT_PREFILL_CHUNK,
    max_batch_size: int = DEFAULT_MAX_BATCH,
    fp32_layers: str | None = None,
    compute_dtype: str = "auto",
    float32_keys: bool = True,
    weights: bool = True,
    library: bool = True,
    reuse_lib: str | Path | None = None,
    use_cache: bool = True,
    debug_dump: str | Path | None = None,
    system_lib: bool = False,
    stock: bool = True,
    prefer_safetensors: bool = True,
    arithmetic: str = "auto",
    reporter: Reporter | None = None,
) -> Artifact:
    """Builds `<output>/<model>-<quantization>` from a checkpoint, whole or not at all.

    `source` is a folder, a `.pth` file or a model on the hub, by name or address, of which
    `revision` is a branch, tag or commit; `model` instead names a checkpoint in
    `<output>/models`. `weights` and `library` leave a part out; that part of an older artifact
    is kept, as are its libraries for other targets. `reuse_lib` takes a library that was built
    before for the same model. `prefill_chunk_size` is how many tokens one call of the library reads
    at most, `max_batch_size` of how many sequences. `max_seq_len` is recorded for engines that ask
    for a limit; the model has none. With `debug_dump`, the module after each phase is written to
    that folder. `arithmetic` is what a CPU multiplies in: "int8" (quantized weights; inputs are
    rounded to 8 bits), "bfloat16" (other weights; both sides are rounded), "float32" or "auto", or
    one of them for each use, "decode=int8,batch=int8,prefill=float32". Without `stock` the library
    has no functions for stock mlc_llm's engine, and is half as large and compiled sooner.

    `compute_dtype` "auto" is the format's type on a GPU and float32 on a CPU; "float16" on a CPU
    rounds every operation's result to float16, as a GPU does, and is slow. `fp32_layers` are the
    blocks that compute in float32 all the same (`0`, `0,2-5`, `all`, `none`), with products in
    float32 whatever `arithmetic` says of the others; `auto` measures on built-in prompts which
    those have to be; not given, those that a model of this shape is known to need. `float32_keys`
    False rounds the products of att.key and att.value to float16 too.

    Raises the errors of `mlc_rwkv_world.errors`.
    """
    reporter = reporter or Reporter()
    if not (weights or library):
        raise UsageError("nothing to build: both the weights and the library were left out.")
    # Whatever is wrong with the options is said before anything is downloaded.
    choices = choose(
        target=target,
        quantization=quantization,
        compute_dtype=compute_dtype,
        arithmetic=arithmetic,
        fp32_layers=fp32_layers,
        float32_keys=float32_keys,
        max_seq_len=max_seq_len,
        prefill_chunk_size=prefill_chunk_size,
        max_batch_size=max_batch_size,
        stock=stock,
    )
    if reuse_lib is not None:
        reuse_lib = expanded(reuse_lib)
        if not reuse_lib.is_file():
            raise NotFoundError(f"--reuse-lib {reuse_lib}: there is no such file.")
    elif library:
        code.require_linker(choices.target, system_lib)
    output = expanded(output)
    path = _locate(source, model, revision, output / MODELS_DIR, prefer_safetensors, reporter)
    checkpoint = open_checkpoint(path, prefer_safetensors=prefer_safetensors)
    dump = expanded(debug_dump) if debug_dump is not None and library else None
    if dump is not None:
        pipeline.prepare_dump(dump)
    plan = make_plan(checkpoint, choices, output, reporter)
    if reuse_lib is not None:
        check_reusable(reuse_lib, plan)
    waiting = f"waiting for another build of {plan.name}"
    stood: dict[Path, Stamp] = {}
    with (
        storing(plan.folder),
        replacing_folder(
            plan.folder,
            lambda: reporter.stage(waiting),
            lambda older: bring_later(older, plan.folder, stood),
        ) as folder,
    ):
        stood |= carry_over(plan, folder, weights=weights)
        built: list[Path] = []
        if reuse_lib is not None:
            built = [_library_path(plan, folder, system_lib=False)]
            shutil.copyfile(reuse_lib, built[0])
        elif library:
            cache = cache_folder() if use_cache else None
            built = _compile(plan, folder, cache, dump, system_lib, reporter)
        if weights:
            _convert(plan, folder / PARAMS_DIR, reporter)
        else:
            record_precision(folder / PARAMS_DIR, plan.config)
        kept = kept_checksums(plan, built, weights=weights)
        write_checksums(folder, [path.name for path in built], kept)
        registry.register(plan.folder, folder)
    return _artifact(plan, built)


def _locate(
    source: str | Path | None,
    model: str | None,
    revision: str | None,
    models_dir: Path,
    prefer_safetensors: bool,
    reporter: Reporter,
) -> Path:
    if (source is None) == (model is None):
        raise UsageError(
            "say which checkpoint to build: --hf-path for a folder, a .pth file or a hub id, "
            f"or --model for a name in {models_dir}."
        )
    if model is not None:
        if revision is not None:
            raise UsageError(f"--revision {revision} is of a model on the hub: give --hf-path.")
        return find_model(model, models_dir)
    reporter.stage(f"looking for {source}")
    path = resolve_source(
        str(source), models_dir, revision=revision, prefer_safetensors=prefer_safetensors
    )
    if path != Path(str(source)):
        reporter.stage(f"reading {path}")
    return path


def _library_path(plan: Plan, folder: Path, *, system_lib: bool) -> Path:
    """Where the library goes; free, since a link to an older one would be written through."""
    target = plan.choices.target
    path = folder / f"{plan.name}-{target.kind}{code.ending(target, system_lib)}"
    path.unlink(missing_ok=True)
    return path


def _compile(
    plan: Plan,
    folder: Path,
    kept: Path | None,
    dump: Path | None,
    system_lib: bool,
    reporter: Reporter,
) -> list[Path]:
    chosen = plan.choices
    reporter.stage(f"compiling for {chosen.target.kind}")
    described = plan.described()
    prefix = code.system_lib_prefix(plan.name) if system_lib else None
    cache = ModuleCache(kept, described, prefix) if kept is not None else None
    parts = (*pipeline.PHASES, *code.PARTS)

    def starting(part: str) -> None:
        reporter.progress(parts.index(part), len(parts), part)

    mod = cache.load() if cache is not None and dump is None else None
    if mod is None:
        exported = export(plan.config, chosen.format, chosen.compute_dtype, stock=chosen.stock)
        if prefix is not None:
            exported = exported.with_attr("system_lib_prefix", prefix)
        mod = pipeline.run(exported, chosen.target.target, plan.config, described, dump, starting)
        if cache is not None:
            cache.store(mod)
    path = _library_path(plan, folder, system_lib=system_lib)
    return code.write(mod, chosen.target, path, starting)


def _convert(plan: Plan, params: Path, reporter: Reporter) -> None:
    reporter.stage(f"converting weights to {plan.choices.format.name}")
    params.mkdir()
    write_vocabulary(params, find_vocabulary(plan.checkpoint.path))
    write_chat_config(params, plan.config, plan.choices.format)
    names = plan.checkpoint.names()
    total = sum(prod(plan.checkpoint.shape(name)) for name in names)
    done = 0

    def report(name: str, count: int) -> None:
        nonlocal done
        done += count
        reporter.progress(done, total, name)

    convert(plan.checkpoint, plan.specs, plan.config, plan.choices.format, params, report)


def _precision_notes(config: ModelConfig) -> tuple[str, ...]:
    if not config.fp32_reasons:
        return ()
    blocks = spelled(config.fp32_layers or ())
    return tuple(f"--fp32-layers {blocks}: {reason}" for reason in config.fp32_reasons)


def _left_out(found: Found) -> list[str]:
    return [f"{path} was not built here: it stays, but does not run." for path in found.unlisted]


def _artifact(plan: Plan, built: list[Path]) -> Artifact:
    params = plan.folder / PARAMS_DIR
    nbytes = ParameterIndex.read(params).nbytes if params.is_dir() else 0
    values = sum(prod(plan.checkpoint.shape(name)) for name in plan.checkpoint.names())
    return Artifact(
        name=plan.name,
        folder=plan.folder,
        params=params,
        libraries=tuple(plan.folder / path.name for path in built),
        quantization=plan.choices.format.name,
        target=plan.choices.target.kind,
        compute_dtype=plan.choices.compute_dtype,
        fp32_layers=tuple(plan.config.fp32_layers or ()),
        nbytes=nbytes,
        bits_per_weight=8 * nbytes / values,
        notes=(
            *_precision_notes(plan.config),
            *plan.choices.target.notes,
            *code.notes(plan.choices.target, built),
            *_left_out(Found(plan.name, plan.folder, params)),
        ),
    )
