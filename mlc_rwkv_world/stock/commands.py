"""`mlc_llm gen_config` and `convert_weight` for our model: the host's arguments, our writers.

The host's own would round float32 weights to bfloat16, and evaluate the vocabulary file as Python.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from mlc_rwkv_world import console
from mlc_rwkv_world.artifact.template import Template
from mlc_rwkv_world.artifact.templates import TEMPLATES, WORLD, template_of
from mlc_rwkv_world.errors import RwkvWorldError, UsageError
from mlc_rwkv_world.stock.models import (
    SOURCE_FORMAT,
    format_of,
    is_ours,
    is_world,
    model_config,
    registered,
)

if TYPE_CHECKING:
    from mlc_rwkv_world.checkpoint import Checkpoint
    from mlc_rwkv_world.model.config import ModelConfig

Command = Callable[[dict[str, Any]], None]


# The host's command wants a template to be named; this one stands for the checkpoint's own.
OWN_TEMPLATE = "rwkv"


def add_gen_config(gen_config: ModuleType) -> None:
    """Our model's `mlc-chat-config.json` and vocabulary are those of our own builds."""
    _divert(gen_config, "gen_config", functools.partial(_gen_config, gen_config))
    names = (template.stock_name for template in TEMPLATES.values())
    gen_config.CONV_TEMPLATES.update({OWN_TEMPLATE, *names})


def add_convert_weight(convert_weight: ModuleType) -> None:
    """Our model's weights are read, stored and indexed as in our own builds."""
    _divert(convert_weight, "convert_weight", _convert_weight)


def add_source_format(auto_weight: ModuleType) -> None:
    """Puts our check first, and in front of each of the host's, which all run whatever is found.

    One of those needs torch, and writes an index into the checkpoint's folder.
    """
    methods = auto_weight.CHECK_FORMAT_METHODS
    if SOURCE_FORMAT not in methods:
        others = {name: _world_or(check) for name, check in methods.items()}
        methods.clear()
        methods.update({SOURCE_FORMAT: find_world, **others})


def _world_or(check: Callable[[Path], Path | None]) -> Callable[[Path], Path | None]:
    return lambda path: find_world(path) or check(path)


def find_world(path: Path) -> Path | None:
    """`path` if it is a World checkpoint, a folder or a .pth file; else None.

    Raises CheckpointError where a folder says that it is one, and is not.
    """
    from mlc_rwkv_world.checkpoint import open_checkpoint

    says_so = path.is_dir() and is_world(path / "config.json")
    if not says_so and path.suffix != ".pth" and not _only_pth(path):
        return None
    try:
        open_checkpoint(path)
    except RwkvWorldError:
        if says_so:
            raise
        return None
    return path


def _only_pth(path: Path) -> bool:
    return path.is_dir() and len(list(path.glob("*.pth"))) == 1


def _divert(module: ModuleType, name: str, ours: Command) -> None:
    """Calls of the host's function with our model go to `ours`, with its arguments by name."""
    original = getattr(module, name)
    if hasattr(original, "rwkv_world"):
        return
    signature = inspect.signature(original)
    if "model" not in signature.parameters:
        raise TypeError(f"{module.__name__}.{name}{signature} has no parameter `model`")

    @functools.wraps(original)
    def diverted(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        given = bound.arguments
        if not is_ours(given["model"], given.get("config")):
            return original(*args, **kwargs)
        bound.apply_defaults()
        return ours({**given, "model": registered()})

    diverted.rwkv_world = True  # type: ignore[attr-defined]
    for other in list(sys.modules.values()):
        # Commands that were imported earlier hold the function by name.
        if getattr(other, "__name__", "").startswith("mlc_llm.") and (
            vars(other).get(name) is original
        ):
            setattr(other, name, diverted)


def _gen_config(host: ModuleType, arguments: dict[str, Any]) -> None:
    from mlc_rwkv_world.checkpoint import find_vocabulary, open_checkpoint
    from mlc_rwkv_world.convert.chat_config import write_chat_config, write_vocabulary

    path, output = Path(arguments["config"]), Path(arguments["output"])
    fmt = format_of(arguments["quantization"])
    override = host.ModelConfigOverride
    accepted = inspect.signature(override).parameters
    chosen = {name: value for name, value in arguments.items() if name in accepted}
    config = override(**chosen).apply(arguments["model"].config.from_file(path))
    ours = model_config(config, fmt)
    # A configuration may come without its weights.
    with contextlib.suppress(RwkvWorldError):
        ours = _as_stored(ours, open_checkpoint(_checkpoint_path(path.parent)))
    template, other = _template(host, arguments["conv_template"], ours.model_version, path)
    write_vocabulary(output, find_vocabulary(path.parent))
    write_chat_config(output, ours, fmt, other, template=template)
    host.logger.info("Dumping configuration file to: %s", output / "mlc-chat-config.json")


def _as_stored(config: ModelConfig, checkpoint: Checkpoint) -> ModelConfig:
    """`config` with what tensors say and no published configuration does."""
    return dataclasses.replace(config, attention_gate=checkpoint.config.attention_gate)


def _template(
    host: ModuleType, name: str, version: int, config: Path
) -> tuple[Template, dict[str, Any] | None]:
    """The template of ours that is named, or one of the host's in its own form."""
    from mlc_rwkv_world.checkpoint.checkpoint import name_of

    checkpoint = name_of(config.parent, is_folder=True)
    own = template_of(version, checkpoint)
    if name == OWN_TEMPLATE:
        console.say(f"{checkpoint}: conversation template {own.stock_name}")
        return own, None
    if name != own.stock_name and own is not WORLD:
        console.complain(
            f"note: {checkpoint} was trained for {own.stock_name}, and {name} is asked for; "
            f"--conv-template {OWN_TEMPLATE} takes a checkpoint's own."
        )
    for template in TEMPLATES.values():
        if template.stock_name == name:
            return template, None
    conversation = host.ConvTemplateRegistry.get_conv_template(name)
    if conversation is None:
        raise UsageError(f"--conv-template {name!r} is not known to this mlc_llm.")
    return own, conversation.to_json_dict()


def _convert_weight(arguments: dict[str, Any]) -> None:
    from mlc_rwkv_world.artifact.layout import NDARRAY_CACHE, SHARD_NAME, TENSOR_CACHE
    from mlc_rwkv_world.checkpoint import open_checkpoint
    from mlc_rwkv_world.compiler.export import parameters
    from mlc_rwkv_world.convert.weights import convert

    if arguments.get("lora_adapter") is not None:
        raise UsageError("--lora-adapter: merge it into the checkpoint first.")
    fmt = format_of(arguments["quantization"])
    output = Path(arguments["output"])
    config = model_config(arguments["model"].config.from_file(Path(arguments["config"])), fmt)
    checkpoint = open_checkpoint(_checkpoint_path(Path(arguments["source"])))
    if checkpoint.version != config.model_version:
        raise UsageError(
            f"{arguments['config']} is the configuration of an RWKV-{config.model_version}, and "
            f"{checkpoint.path} holds an RWKV-{checkpoint.version}. Give the checkpoint's own "
            "configuration, or a preset of its version."
        )
    config = _as_stored(config, checkpoint)
    # A conversion that is killed must not look like the whole of an older one.
    for name in (TENSOR_CACHE, NDARRAY_CACHE):
        (output / name).unlink(missing_ok=True)
    for shard in output.glob(SHARD_NAME.format(index="*")):
        shard.unlink()
    convert(checkpoint, parameters(config, fmt), config, fmt, output, _show)
    console.say(f"Converted {checkpoint.path} to {fmt.name} in {output}")


def _show(name: str, count: int) -> None:
    console.say(f"  {name}: {count} values")


def _checkpoint_path(source: Path) -> Path:
    """The host may name the index or the one file of a folder in Hugging Face layout."""
    if source.is_file() and (source.parent / "config.json").is_file() and source.suffix != ".pth":
        return source.parent
    return source
