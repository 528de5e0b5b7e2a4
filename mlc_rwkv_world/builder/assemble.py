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
from mlc_rwkv_world.artifact.template import Template
from mlc_rwkv_world.builder.choices import choose
from mlc_rwkv_world.builder.older import Stamp, bring_later, carry_over, kept_checksums
from mlc_rwkv_world.builder.options import Options
from mlc_rwkv_world.builder.plan import Plan, make_plan
from mlc_rwkv_world.builder.reuse import check_reusable
from mlc_rwkv_world.checkpoint import (
    Checkpoint,
    find_model,
    find_vocabulary,
    open_checkpoint,
    resolve_source,
)
from mlc_rwkv_world.compiler import library as code
from mlc_rwkv_world.compiler import pipeline
from mlc_rwkv_world.compiler.additions import Additions
from mlc_rwkv_world.compiler.cache import ModuleCache, cache_folder
from mlc_rwkv_world.compiler.export import export
from mlc_rwkv_world.convert.chat_config import (
    record_precision,
    write_chat_config,
    write_vocabulary,
)
from mlc_rwkv_world.convert.weights import convert
from mlc_rwkv_world.errors import NotFoundError, UsageError
from mlc_rwkv_world.model.config import ModelConfig
from mlc_rwkv_world.model.fp32_layers import spelled
from mlc_rwkv_world.reporter import Reporter

MODELS_DIR = "models"


@dataclasses.dataclass(frozen=True)
class Artifact:
    """What a build wrote. `libraries` holds the library, and what else compiling left.

    `template` is how conversations are written; None where the weights were left out, and with
    them the configuration that says it.
    """

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
    template: Template | None
    notes: tuple[str, ...] = ()


def build(
    options: Options, additions: Additions | None = None, reporter: Reporter | None = None
) -> Artifact:
    """Builds `<output>/<model>-<quantization>` from a checkpoint, whole or not at all.

    `additions` are what the library has for a host: stock's, where `options.stock` asks for them.

    Raises the errors of `mlc_rwkv_world.errors`.
    """
    reporter = reporter or Reporter()
    # Whatever is wrong with the options is said before anything is downloaded.
    choices = choose(options, additions)
    reuse_lib = None if options.reuse_lib is None else expanded(options.reuse_lib)
    if reuse_lib is not None:
        if not reuse_lib.is_file():
            raise NotFoundError(f"--reuse-lib {reuse_lib}: there is no such file.")
    elif options.library:
        code.require_linker(choices.target, options.system_lib)
    output = expanded(options.output)
    path = _locate(options, output / MODELS_DIR, reporter)
    checkpoint = open_checkpoint(path, prefer_safetensors=options.prefer_safetensors)
    dump = options.dump if options.library else None
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
        stood |= carry_over(plan, folder, weights=options.weights)
        built: list[Path] = []
        if reuse_lib is not None:
            built = [_library_path(plan, folder, system_lib=False)]
            shutil.copyfile(reuse_lib, built[0])
        elif options.library:
            built = _compile(plan, folder, dump, reporter)
        if options.weights:
            _convert(plan, folder / PARAMS_DIR, reporter)
        else:
            record_precision(folder / PARAMS_DIR, plan.config)
        kept = kept_checksums(plan, built, weights=options.weights)
        write_checksums(folder, [path.name for path in built], kept)
        registry.register(plan.folder, folder)
    return _artifact(plan, built)


def _locate(options: Options, models_dir: Path, reporter: Reporter) -> Path:
    source, model, revision = options.source, options.model, options.revision
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
        str(source),
        models_dir,
        revision=revision,
        prefer_safetensors=options.prefer_safetensors,
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


def _compile(plan: Plan, folder: Path, dump: Path | None, reporter: Reporter) -> list[Path]:
    chosen = plan.choices
    reporter.stage(f"compiling for {chosen.target.kind}")
    described, added = plan.described(), chosen.additions
    system_lib = chosen.options.system_lib
    prefix = code.system_lib_prefix(plan.name) if system_lib else None
    kept = cache_folder() if chosen.options.use_cache else None
    cache = ModuleCache(kept, described, prefix, added) if kept is not None else None
    parts = (*pipeline.PHASES, *code.PARTS)

    def starting(part: str) -> None:
        reporter.progress(parts.index(part), len(parts), part)

    mod = cache.load() if cache is not None and dump is None else None
    if mod is None:
        exported = export(plan.config, chosen.format, chosen.compute_dtype, added)
        if prefix is not None:
            exported = exported.with_attr("system_lib_prefix", prefix)
        target = chosen.target.target
        mod = pipeline.run(exported, target, plan.config, described, dump, starting, added)
        if cache is not None:
            cache.store(mod)
    path = _library_path(plan, folder, system_lib=system_lib)
    return code.write(mod, chosen.target, path, starting)


def _convert(plan: Plan, params: Path, reporter: Reporter) -> None:
    reporter.stage(f"converting weights to {plan.choices.format.name}")
    params.mkdir()
    write_vocabulary(params, find_vocabulary(plan.checkpoint.path))
    write_chat_config(params, plan.config, plan.choices.format, template=plan.template)
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


def _tuned_notes(checkpoint: Checkpoint) -> tuple[str, ...]:
    if not checkpoint.holds_tuned_state:
        return ()
    return (
        f"{checkpoint.path} holds a state that it was tuned with. A conversation begins from it "
        "with --state, which takes such a file too.",
    )


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
        template=plan.template if plan.choices.options.weights else None,
        notes=(
            *_precision_notes(plan.config),
            *_tuned_notes(plan.checkpoint),
            *plan.choices.target.notes,
            *code.notes(plan.choices.target, built),
            *_left_out(Found(plan.name, plan.folder, params)),
        ),
    )
