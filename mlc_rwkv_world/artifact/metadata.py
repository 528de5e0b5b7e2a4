"""The metadata that a compiled library carries, typed and checked.

Stock's fields are those that mlc_llm's engine reads; `rwkv_world` holds what ours adds.
"""

from __future__ import annotations

from dataclasses import dataclass

from mlc_rwkv_world.artifact.index import ITEM_SIZES
from mlc_rwkv_world.artifact.json_fields import Fields
from mlc_rwkv_world.artifact.layout import MODEL_TYPE
from mlc_rwkv_world.artifact.tuned_state import TunedRows
from mlc_rwkv_world.errors import ArtifactError

# Counts changes of what the exported functions take, mean or compute by intent: other sums, another
# softmax. A library of another revision is refused.
REVISION = 4
# Far beyond every RWKV model; what is larger is damage, and is not allocated.
_MOST_STATE_BYTES = 1 << 30
_MOST_TOKENS = 1 << 24
RWKV4_INITIAL_ROWS = (0.0, 0.0, 0.0, -1e30, 0.0)


@dataclass(frozen=True)
class Parameter:
    """A tensor that the library takes."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class PackedParameter:
    """A tensor that our functions take in place of `sources`, made by the function `pack`.

    Where `pack` is empty it is its one source as it is stored.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    sources: tuple[str, ...]
    pack: str


@dataclass(frozen=True)
class LibraryMetadata:
    """What a library says of itself.

    `packed` is None where our functions take stock's parameters; `initial_rows` [R] are the
    values that fill each row of a layer in a fresh state; `cpu_features` are LLVM's names of
    what the code needs, empty where the library does not say. `fp32_layers` are the blocks that
    compute in float32 whatever `compute_dtype` is. `tvm` is the version of TVM that compiled the
    library, None where it does not say. `arithmetic` is what products with packed weights compute
    in by use, "int8", "bfloat16" or "float32", outside those blocks. `stock` is whether the
    functions are there that stock mlc_llm's engine calls. `tuned_rows` is None for models that
    begin from no tuned state.
    """

    source: str
    quantization: str
    parameters: tuple[Parameter, ...]
    packed: tuple[PackedParameter, ...] | None
    prefill_chunk_size: int
    max_batch_size: int
    revision: int
    target: str
    cpu_features: tuple[str, ...]
    compute_dtype: str
    fp32_layers: tuple[int, ...]
    float32_keys: bool
    arithmetic: dict[str, str]
    num_hidden_layers: int
    hidden_size: int
    vocab_size: int
    initial_rows: tuple[float, ...]
    tuned_rows: TunedRows | None
    build_id: str | None
    tvm: str | None
    stock: bool

    @classmethod
    def parse(cls, text: str, source: str) -> LibraryMetadata:
        """Read the JSON that `_metadata()` of the library `source` returns.

        Raises ArtifactError where it is damaged, or the library is not one of ours.
        """
        fields = Fields.parse(text, f"{source}: metadata")
        model_type = fields.text("model_type", "?")
        if model_type != MODEL_TYPE or "rwkv_world" not in fields.values:
            raise ArtifactError(
                f"{source} was compiled for a model of type {model_type!r}, and not by "
                f"mlc-rwkv-world. Give the library of an artifact built for {MODEL_TYPE!r}."
            )
        ours = fields.object("rwkv_world")
        uses = ours.object("arithmetic", {})
        parameters = tuple(_parameter(entry) for entry in fields.objects("params"))
        packed = None
        if ours.values.get("packed_params") is not None:
            known = {parameter.name for parameter in parameters}
            packed = tuple(_packed(entry, known) for entry in ours.objects("packed_params"))
        layers = ours.integer("num_hidden_layers", minimum=1)
        hidden_size = ours.integer("hidden_size", minimum=1)
        vocab_size = ours.integer("vocab_size", minimum=1)
        rows = tuple(ours.items("initial_rows", float, [*RWKV4_INITIAL_ROWS]))
        if 4 * layers * hidden_size * max(1, len(rows)) > _MOST_STATE_BYTES:
            raise ours.error("hidden_size", "the width of a model")
        if vocab_size > _MOST_TOKENS:
            raise ours.error("vocab_size", f"at most {_MOST_TOKENS}")
        return cls(
            source=source,
            quantization=fields.text("quantization"),
            parameters=parameters,
            packed=packed,
            prefill_chunk_size=fields.integer("prefill_chunk_size", minimum=1),
            max_batch_size=fields.integer("max_batch_size", 1, minimum=1),
            revision=ours.integer("revision"),
            target=ours.text("target"),
            cpu_features=tuple(ours.items("cpu_features", str, [])),
            compute_dtype=ours.text("compute_dtype"),
            fp32_layers=tuple(ours.items("fp32_layers", int, [])),
            float32_keys=ours.values.get("float32_keys") is not False,
            arithmetic={use: uses.text(use) for use in uses.values},
            num_hidden_layers=layers,
            hidden_size=hidden_size,
            vocab_size=vocab_size,
            initial_rows=rows,
            tuned_rows=_tuned_rows(ours, len(rows), hidden_size),
            build_id=ours.build_id(),
            tvm=ours.text("tvm", "") or None,
            stock=ours.values.get("stock") is not False,
        )


def _tuned_rows(ours: Fields, rows: int, width: int) -> TunedRows | None:
    if ours.values.get("tuned_state") is None:
        return None
    fields = ours.object("tuned_state")
    transposed = fields.values.get("transposed") is True
    found = TunedRows(fields.integer("row"), fields.integer("rows", minimum=1), transposed)
    if found.row + found.rows > rows or width % found.rows:
        raise ours.error("tuned_state", f"some of the {rows} rows of a state")
    return found


def _parameter(fields: Fields) -> Parameter:
    return Parameter(fields.text("name"), fields.shape(), _dtype(fields))


def _packed(fields: Fields, known: set[str]) -> PackedParameter:
    sources, pack = fields.items("from", str), fields.text("pack", "")
    if not sources or not known.issuperset(sources):
        raise fields.error("from", "names of the library's parameters")
    if not pack and len(sources) > 1:
        raise fields.error("pack", "the function that makes one tensor of several")
    return PackedParameter(
        fields.text("name"), fields.shape(), _dtype(fields), tuple(sources), pack
    )


def _dtype(fields: Fields) -> str:
    dtype = fields.text("dtype")
    if dtype not in ITEM_SIZES:
        raise fields.error("dtype", "one of " + ", ".join(ITEM_SIZES))
    return dtype
