"""The host's registry entry for RWKV World: configuration, model, parameters.

The host calls what is registered here with its own objects; this module translates them into
ours. Our compiler is imported only when a model is made.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from mlc_rwkv_world import __version__
from mlc_rwkv_world.artifact.layout import MODEL_TYPE
from mlc_rwkv_world.artifact.metadata import REVISION
from mlc_rwkv_world.errors import RwkvWorldError, UsageError
from mlc_rwkv_world.model.config import ModelConfig

if TYPE_CHECKING:
    from mlc_rwkv_world.storage import Format

# What configurations of Hugging Face call themselves, and which version they are of.
ALIASES = {"rwkv": 4, "rwkv5": 5, "rwkv6": 6, "rwkv7": 7}
# Those of which the host has models of its own, for others' checkpoints.
HOSTS_OWN = ("rwkv5", "rwkv6")
# Fields that those of RWKV-7 have under names of their own.
_FIELDS = {"head_dim": "head_size", "norm_eps": "layer_norm_epsilon"}
# Our reader, among the host's source formats.
SOURCE_FORMAT = "rwkv-world"
# Kinds of the host's formats whose storage we have.
_KINDS = ("no-quant", "group-quant")
# The attribute of an exported module by which our pipeline knows it.
MODULE_ATTRIBUTE = "rwkv_world"
# Rows of a World model's head that can mean something; other RWKV-4 models have fewer.
_WORLD_ROWS = 65536


def add_models(model_model: ModuleType) -> None:
    """Adds the model type and its aliases to the host's registry.

    What the host has under such a name stays.
    """
    model = model_model.Model(
        name=MODEL_TYPE,
        config=_config_class(),
        model=_plain_model,
        source=dict.fromkeys(
            (SOURCE_FORMAT, "huggingface-safetensor", "huggingface-torch"), _no_mapping
        ),
        quantize=dict.fromkeys(_KINDS, quantized_model),
    )
    model_model.MODELS[MODEL_TYPE] = model
    for name in ALIASES:
        model_model.MODELS.setdefault(name, model)


def add_formats(quantization: ModuleType) -> None:
    """Adds our formats that the host lacks, described in its terms."""
    from mlc_rwkv_world.storage import FORMATS

    known = quantization.QUANTIZATION
    for fmt in FORMATS.values():
        if fmt.name in known:
            continue
        stored = fmt.matrix
        if stored.bits:
            known[fmt.name] = quantization.GroupQuantize(
                name=fmt.name,
                kind="group-quant",
                group_size=stored.group,
                quantize_dtype=f"int{stored.bits}",
                storage_dtype="uint32",
                model_dtype=fmt.dtype,
                linear_weight_layout="NK",
            )
        else:
            known[fmt.name] = quantization.NoQuantize(
                name=fmt.name, kind="no-quant", model_dtype=fmt.dtype
            )


def registered() -> Any:
    """Our entry in the host's registry."""
    from mlc_llm.model.model import MODELS

    return MODELS[MODEL_TYPE]


def is_ours(model: Any, config: Path | None = None) -> bool:
    """Whether a registry entry of the host's is the one that was added here.

    It is taken for its own of the same version as well, where `config` is of a World model.
    """
    name = getattr(model, "name", None)
    return name == MODEL_TYPE or (name in HOSTS_OWN and config is not None and is_world(config))


def is_world(config: Path) -> bool:
    """Whether a `config.json` is of a type that is ours to read.

    Of those that the host has models of, only World's are.
    """
    from mlc_rwkv_world.checkpoint.folder import read_json

    try:
        values = read_json(config)
    except RwkvWorldError:
        return False
    kind = values.get("model_type")
    return kind in ALIASES and (kind not in HOSTS_OWN or values.get("vocab_size") == _WORLD_ROWS)


def model_config(config: Any, fmt: Format) -> ModelConfig:
    """Our configuration from the host's; how weights are stored decides whether they rescale."""
    from mlc_rwkv_world.versions.table import settled

    values = config.asdict()
    if not fmt.rescales:
        values["rescale_every"] = 0
    return settled(ModelConfig.from_dict(values))


def format_of(quantization: Any) -> Format:
    """Our format of the host's name; UsageError where it is none of ours."""
    from mlc_rwkv_world.storage import format_named

    return format_named(quantization.name)


def _config_class() -> type:
    """Our configuration as a class of the host's kind, whose fields its commands may override."""
    from mlc_llm.support.config import ConfigBase

    fields: list[Any] = [
        (field.name, field.type, _default(field)) for field in dataclasses.fields(ModelConfig)
    ]
    fields += [
        # The host's cache of compiled libraries is keyed by the configuration: new kernels must
        # not be taken for old ones.
        ("rwkv_world_revision", str, dataclasses.field(default="")),
        ("kwargs", dict, dataclasses.field(default_factory=dict)),
    ]
    return dataclasses.make_dataclass(
        "RwkvWorldConfig",
        fields,
        bases=(ConfigBase,),
        namespace={"__post_init__": _complete, "__module__": __name__},
    )


def _default(field: dataclasses.Field[Any]) -> Any:
    default = None if field.default is dataclasses.MISSING else field.default
    return dataclasses.field(default=default)


def _complete(config: Any) -> None:
    """Fills what Hugging Face's configurations leave out, and checks the whole.

    Those of RWKV-6 name no ranks: these are the published models'.
    """
    from mlc_rwkv_world.compiler.cache import digest_of_sources
    from mlc_rwkv_world.stock.additions import STOCK

    # All that a host's cache of compiled libraries knows of our code.
    config.rwkv_world_revision = f"{__version__}-{REVISION}-{digest_of_sources(STOCK)[:12]}"
    # What is no field of ours the host keeps aside.
    given = config.kwargs
    if isinstance(config.model_version, str):
        # The first configurations of RWKV-5 say "5_2" here, and RWKV-4's type.
        config.model_version = int(config.model_version.partition("_")[0])
    else:
        config.model_version = ALIASES.get(given.get("model_type"), config.model_version)
    if config.hidden_size:
        usual = _usual_sizes(config.model_version, config.hidden_size)
        for name, size in usual.items():
            setattr(config, name, getattr(config, name) or size)
    for theirs, ours in _FIELDS.items():
        if given.get(theirs) is not None:
            setattr(config, ours, given[theirs])
    values = {key: value for key, value in config.asdict().items() if value is not None}
    for name, value in ModelConfig.from_dict(values).as_dict().items():
        setattr(config, name, value)
    if config.vocab_size != _WORLD_ROWS:
        raise UsageError(
            f"config.json: vocab_size is {config.vocab_size}; RWKV World models have {_WORLD_ROWS}."
        )


def _usual_sizes(version: int, width: int) -> dict[str, int]:
    """What models of a width have where their configuration says nothing."""
    inner = 4 * width if version in (4, 7) else int(3.5 * width) // 32 * 32
    sizes = {"intermediate_size": inner, "attention_hidden_size": width}
    if version == 6:
        large = width >= 4096
        sizes |= {"mix_low_rank_dim": 64 if large else 32}
        sizes |= {"decay_low_rank_dim": 128 if large else 64}
    return sizes


def _plain_model(config: Any) -> Any:
    from mlc_rwkv_world.compiler.export import model
    from mlc_rwkv_world.stock.exports import StockLM
    from mlc_rwkv_world.storage import format_named

    fmt = format_named("q0f32")
    return model(model_config(config, fmt), fmt, fmt.dtype, StockLM)


def quantized_model(config: Any, quantization: Any) -> tuple[Any, Any]:
    """The model as the format stores it; computing as the current target does, if there is one."""
    from mlc_llm.loader import QuantizeMapping
    from tvm.target import Target

    from mlc_rwkv_world.compiler.export import compute_dtype, model
    from mlc_rwkv_world.stock.exports import StockLM

    fmt = format_of(quantization)
    ours = model_config(config, fmt)
    target = Target.current(allow_none=True)
    dtype = fmt.dtype if target is None else compute_dtype(fmt, target.kind.name)
    module = model(ours, fmt, dtype, StockLM)
    description = json.dumps({"config": ours.as_dict(), "format": fmt.name, "compute_dtype": dtype})
    export_tvm = module.export_tvm

    def export(*args: Any, **kwargs: Any) -> Any:
        mod, *rest = export_tvm(*args, **kwargs)
        return (mod.with_attr(MODULE_ATTRIBUTE, description), *rest)

    module.export_tvm = export
    return module, QuantizeMapping({}, {})


def _no_mapping(_: Any, quantization: Any) -> Any:
    raise UsageError(
        f"{MODEL_TYPE} is converted whole, by `mlc_llm convert_weight`, and not tensor by tensor "
        f"through the host's loaders (asked for {quantization.name})."
    )
