"""Builds an artifact: a checkpoint's weights, converted, and a library that computes with them."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import tvm

from mlc_rwkv_world.artifact import registry
from mlc_rwkv_world.artifact.atomic import replacing_folder
from mlc_rwkv_world.artifact.checksums import read_checksums, write_checksums
from mlc_rwkv_world.artifact.index import ParameterIndex
from mlc_rwkv_world.artifact.layout import CHAT_CONFIG, PARAMS_DIR, SHA256SUMS
from mlc_rwkv_world.artifact.storage import storing
from mlc_rwkv_world.checkpoint import (
    Checkpoint,
    find_model,
    find_vocabulary,
    open_checkpoint,
    resolve_source,
)
from mlc_rwkv_world.compiler import arithmetic as arithmetic_of
from mlc_rwkv_world.compiler import library as code
from mlc_rwkv_world.compiler import metadata, pipeline
from mlc_rwkv_world.compiler.cache import ModuleCache
from mlc_rwkv_world.compiler.export import ParameterSpec, export, parameters
from mlc_rwkv_world.compiler.export import compute_dtype as usual_dtype
from mlc_rwkv_world.compiler.target import BuildTarget, resolve
from mlc_rwkv_world.convert.chat_config import (
    record_precision,
    write_chat_config,
    write_vocabulary,
)
from mlc_rwkv_world.convert.weights import convert
from mlc_rwkv_world.errors import ArtifactError, NotFoundError, UsageError
from mlc_rwkv_world.models.config import DEFAULT_MAX_BATCH, DEFAULT_PREFILL_CHUNK, ModelConfig
from mlc_rwkv_world.models.fp32_layers import parse, spelled
from mlc_rwkv_world.numerics.precision import choose
from mlc_rwkv_world.quantization import Format, format_named
from mlc_rwkv_world.reporter import Reporter
from mlc_rwkv_world.runtime.cpu import missing_features
from mlc_rwkv_world.runtime.library import open_library

MODELS_DIR = "models"
CACHE_DIR = "cache"


# Measures instead of naming blocks.
AUTO = "auto"
# More than any model has: for options that are looked at before the model is.
_MOST_BLOCKS = 1 << 16
# What a library of ours is made for, beside its parameters.
_IDENTITY = (
    "hidden_size",
    "layer_norm_epsilon",
    "rescale_every",
    "compute_dtype",
    "fp32_layers",
    "float32_keys",
)


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


@dataclasses.dataclass(frozen=True)
class _Plan:
    """Everything that is settled before the first long step."""

    checkpoint: Checkpoint
    config: ModelConfig
    format: Format
    target: BuildTarget
    compute_dtype: str
    arithmetic: dict[str, str]
    specs: list[ParameterSpec]
    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name


def build(
    source: str | Path | None = None,
    *,
    model: str | None = None,
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
    prefer_safetensors: bool = True,
    arithmetic: str = "auto",
    reporter: Reporter | None = None,
) -> Artifact:
    """Builds `<output>/<model>-<quantization>` from a checkpoint, whole or not at all.

    `source` is a folder, a `.pth` file or a hub id; `model` instead names a checkpoint in
    `<output>/models`. `weights` and `library` leave a part out; that part of an older artifact
    is kept, as are its libraries for other targets. `reuse_lib` takes a library that was built
    before for the same model. `prefill_chunk_size` is how many tokens one call of the library reads
    at most, `max_batch_size` of how many sequences. `max_seq_len` is recorded for engines that ask
    for a limit; the model has none. With `debug_dump`, the module after each phase is written to
    that folder. `arithmetic` is what a CPU multiplies quantized weights in: "int8", "float32" or
    "auto", or one of them for each use, "decode=int8,batch=int8,prefill=float32".

    `compute_dtype` "auto" is the format's type on a GPU and float32 on a CPU; "float16" on a CPU
    rounds every operation's result to float16, as a GPU does, and is slow. `fp32_layers` are the
    blocks that compute in float32 all the same (`0`, `0,2-5`, `all`, `none`); `auto` measures on
    built-in prompts which those have to be; not given, those that a model of this shape is known
    to need. `float32_keys` False rounds the products of
    att.key and att.value to float16 too.

    Raises the errors of `mlc_rwkv_world.errors`.
    """
    reporter = reporter or Reporter()
    if not (weights or library):
        raise UsageError("nothing to build: both the weights and the library were left out.")
    limits = {
        "max_seq_len": max_seq_len,
        "prefill_chunk_size": prefill_chunk_size,
        "max_batch_size": max_batch_size,
    }
    for name, value in limits.items():
        if value is not None and value < 1:
            raise UsageError(f"{name} is {value}; it must be at least 1.")
    # Whatever is wrong with the options is said before anything is downloaded.
    chosen, fmt = _for_this_cpu(resolve(target), target), format_named(quantization)
    computes = _compute_dtype(compute_dtype, fmt, chosen)
    if fp32_layers not in (None, AUTO):
        parse(fp32_layers, _MOST_BLOCKS)
    if reuse_lib is not None and not Path(reuse_lib).is_file():
        raise NotFoundError(f"--reuse-lib {reuse_lib}: there is no such file.")
    output = Path(output)
    path = _locate(source, model, output / MODELS_DIR, prefer_safetensors, reporter)
    checkpoint = open_checkpoint(path, prefer_safetensors=prefer_safetensors)
    plan = _plan(
        checkpoint,
        chosen,
        fmt,
        output,
        max_seq_len,
        prefill_chunk_size,
        max_batch_size,
        fp32_layers,
        computes,
        float32_keys,
        reporter,
        arithmetic,
    )
    if reuse_lib is not None:
        _check_reusable(Path(reuse_lib), plan)
    waiting = f"waiting for another build of {plan.name}"
    with (
        storing(plan.folder),
        replacing_folder(plan.folder, lambda: reporter.stage(waiting)) as folder,
    ):
        _carry_over(plan, folder, weights=weights)
        built: list[Path] = []
        if reuse_lib is not None:
            built = [_library_path(plan, folder, system_lib=False)]
            shutil.copyfile(reuse_lib, built[0])
        elif library:
            cache = output / CACHE_DIR if use_cache else None
            dump = Path(debug_dump) if debug_dump is not None else None
            built = _compile(plan, folder, cache, dump, system_lib, reporter)
        if weights:
            _convert(plan, folder / PARAMS_DIR, reporter)
        else:
            record_precision(folder / PARAMS_DIR, plan.config)
        write_checksums(folder, plan.name, _kept_checksums(plan, built, weights=weights))
    registry.register(plan.folder)
    return _artifact(plan, built)


def _for_this_cpu(target: BuildTarget, text: str) -> BuildTarget:
    """A target that this machine was to choose, without what a hypervisor hides of its CPU."""
    if "mcpu" in text or "mtriple" in text or target.host.attrs.get("mcpu") is None:
        return target
    missing = missing_features(target.cpu_features())
    return target.without(missing) if missing else target


def _compute_dtype(asked: str, fmt: Format, target: BuildTarget) -> str:
    if asked not in ("auto", "float16", "float32"):
        raise UsageError(f"--compute-dtype {asked!r}: give auto, float16 or float32.")
    if asked == "float16" and fmt.dtype != "float16":
        raise UsageError(
            f"--compute-dtype float16: {fmt.name} computes in float32; "
            f"choose {fmt.name.replace('f32', 'f16')}."
        )
    return usual_dtype(fmt, target.kind) if asked == "auto" else asked


def _locate(
    source: str | Path | None,
    model: str | None,
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
        return find_model(model, models_dir)
    reporter.stage(f"looking for {source}")
    return resolve_source(str(source), models_dir, prefer_safetensors=prefer_safetensors)


def _plan(
    checkpoint: Checkpoint,
    target: BuildTarget,
    fmt: Format,
    output: Path,
    max_seq_len: int | None,
    prefill_chunk_size: int,
    max_batch_size: int,
    fp32_layers: str | None,
    compute_dtype: str,
    float32_keys: bool,
    reporter: Reporter,
    arithmetic: str,
) -> _Plan:
    shape = checkpoint.config
    layers = shape.num_hidden_layers
    config = ModelConfig(
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_hidden_layers,
        vocab_size=shape.vocab_size,
        attention_hidden_size=shape.attention_hidden_size,
        model_version=checkpoint.version,
        layer_norm_epsilon=shape.layer_norm_epsilon,
        rescale_every=shape.rescale_every if fmt.rescales else 0,
        context_window_size=-1 if max_seq_len is None else max_seq_len,
        prefill_chunk_size=prefill_chunk_size,
        max_batch_size=max_batch_size,
        fp32_layers=None if fp32_layers in (None, AUTO) else parse(fp32_layers, layers),
        float32_keys=float32_keys,
    )
    if fp32_layers == AUTO:
        config = _measured(checkpoint, config, fmt, reporter)
    return _Plan(
        checkpoint,
        config,
        fmt,
        target,
        compute_dtype,
        arithmetic_of.resolve(arithmetic, target, fmt, compute_dtype),
        parameters(config, fmt),
        output / f"{checkpoint.name}-{fmt.name}",
    )


def _measured(
    checkpoint: Checkpoint, config: ModelConfig, fmt: Format, reporter: Reporter
) -> ModelConfig:
    """The configuration with the blocks in float32 that running the model in float16 asks for."""
    reporter.stage("measuring which blocks need float32")
    choice = choose(
        checkpoint,
        config,
        fmt,
        lambda done, total: reporter.progress(done, total, f"block {done - 1}"),
    )
    return dataclasses.replace(config, fp32_layers=choice.blocks, fp32_reasons=choice.reasons)


def _describe(plan: _Plan) -> dict[str, Any]:
    return metadata.describe(
        plan.config,
        plan.format,
        plan.specs,
        plan.target,
        plan.compute_dtype,
        plan.arithmetic,
    )


def _check_reusable(path: Path, plan: _Plan) -> None:
    """ArtifactError unless the library at `path` computes what this build's would."""
    ours = _identity(_describe(plan))
    theirs = _identity(json.loads(str(open_library(path, tvm.cpu()).machine["_metadata"]())))
    for key, value in ours.items():
        if theirs[key] != value:
            found = "" if key == "params" else f" ({theirs[key]!r} there, {value!r} here)"
            raise ArtifactError(
                f"--reuse-lib {path}: it was built for other {key}{found}. "
                "Build without --reuse-lib."
            )


def _identity(described: dict[str, Any]) -> dict[str, Any]:
    """What a library's metadata and a build's have to agree on."""
    ours = described["rwkv_world"]
    return {
        "target": json.loads(ours["target"])["kind"],
        "quantization": described["quantization"],
        **{key: ours.get(key) for key in _IDENTITY},
        "params": described["params"],
    }


def _carry_over(plan: _Plan, new: Path, *, weights: bool) -> None:
    """Keeps what this build does not write: other targets' libraries, parameters, user's files.

    Weights that were converted for another configuration of the model and the libraries beside
    them belong together: neither stays without the other, since nothing else would notice.
    """
    old = plan.folder
    stale = not _same_model(old / PARAMS_DIR, plan.config)
    if stale and not weights:
        raise ArtifactError(
            f"{old / PARAMS_DIR} was converted for another configuration of the model. Build "
            "without --build-model-only."
        )
    for path in old.iterdir() if old.is_dir() else ():
        if path.name == SHA256SUMS or (weights and path.name == PARAMS_DIR):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.copytree(path, new / path.name, symlinks=True, copy_function=_link_or_copy)
        elif not (stale and path.name.startswith(f"{plan.name}-")):
            _link_or_copy(str(path), str(new / path.name))


def _kept_checksums(plan: _Plan, built: list[Path], *, weights: bool) -> dict[str, str]:
    """The checksums of what this build took over from the older artifact."""
    try:
        old = read_checksums(plan.folder) or {}
    except ArtifactError:
        # `verify` has the last word on files whose checksums are lost: they are new from here on.
        return {}
    replaced = {*(path.name for path in built), f"{PARAMS_DIR}/{CHAT_CONFIG}"}
    return {
        name: value
        for name, value in old.items()
        if name not in replaced and not (weights and name.startswith(f"{PARAMS_DIR}/"))
    }


def _same_model(params: Path, config: ModelConfig) -> bool:
    """Whether weights in `params`, if there are any, were converted for this configuration."""
    if not params.is_dir():
        return True
    try:
        text = (params / CHAT_CONFIG).read_text(encoding="utf-8")
        old = ModelConfig.from_dict(json.loads(text)["model_config"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
    of_the_library = (
        "context_window_size",
        "prefill_chunk_size",
        "max_batch_size",
        "fp32_layers",
        "fp32_reasons",
        "float32_keys",
    )
    return config == dataclasses.replace(
        old, **{field: getattr(config, field) for field in of_the_library}
    )


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)


def _library_path(plan: _Plan, folder: Path, *, system_lib: bool) -> Path:
    """Where the library goes; free, since a link to an older one would be written through."""
    path = folder / f"{plan.name}-{plan.target.kind}{code.ending(plan.target, system_lib)}"
    path.unlink(missing_ok=True)
    return path


def _compile(
    plan: _Plan,
    folder: Path,
    cache_folder: Path | None,
    dump: Path | None,
    system_lib: bool,
    reporter: Reporter,
) -> list[Path]:
    reporter.stage(f"compiling for {plan.target.kind}")
    described = _describe(plan)
    prefix = code.system_lib_prefix(plan.name) if system_lib else None
    cache = ModuleCache(cache_folder, described, prefix) if cache_folder is not None else None
    mod = cache.load() if cache is not None and dump is None else None
    if mod is None:
        exported = export(plan.config, plan.format, plan.compute_dtype)
        if prefix is not None:
            exported = exported.with_attr("system_lib_prefix", prefix)
        mod = pipeline.run(exported, plan.target.target, plan.config, described, dump)
        if cache is not None:
            cache.store(mod)
    path = _library_path(plan, folder, system_lib=system_lib)
    return code.write(mod, plan.target, path)


def _convert(plan: _Plan, params: Path, reporter: Reporter) -> None:
    reporter.stage(f"converting weights to {plan.format.name}")
    params.mkdir()
    write_vocabulary(params, find_vocabulary(plan.checkpoint.path))
    write_chat_config(params, plan.config, plan.format)
    names = plan.checkpoint.names()
    total = sum(_count(plan.checkpoint.shape(name)) for name in names)
    done = 0

    def report(name: str, count: int) -> None:
        nonlocal done
        done += count
        reporter.progress(done, total, name)

    convert(plan.checkpoint, plan.specs, plan.config, plan.format, params, report)


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for extent in shape:
        count *= extent
    return count


def _precision_notes(config: ModelConfig) -> tuple[str, ...]:
    if not config.fp32_reasons:
        return ()
    blocks = spelled(config.fp32_layers or ())
    return tuple(f"--fp32-layers {blocks}: {reason}" for reason in config.fp32_reasons)


def _artifact(plan: _Plan, built: list[Path]) -> Artifact:
    params = plan.folder / PARAMS_DIR
    nbytes = ParameterIndex.read(params).nbytes if params.is_dir() else 0
    values = sum(_count(plan.checkpoint.shape(name)) for name in plan.checkpoint.names())
    return Artifact(
        name=plan.name,
        folder=plan.folder,
        params=params,
        libraries=tuple(plan.folder / path.name for path in built),
        quantization=plan.format.name,
        target=plan.target.kind,
        compute_dtype=plan.compute_dtype,
        fp32_layers=tuple(plan.config.fp32_layers or ()),
        nbytes=nbytes,
        bits_per_weight=8 * nbytes / values,
        notes=(*_precision_notes(plan.config), *plan.target.notes, *code.notes(plan.target, built)),
    )
