"""What the versions have in common whose heads hold a matrix: RWKV-5, 6 and 7."""

from __future__ import annotations

from collections.abc import Sequence

from mlc_rwkv_world.artifact.tuned_state import TunedRows
from mlc_rwkv_world.errors import UsageError
from mlc_rwkv_world.model.config import ModelConfig
from mlc_rwkv_world.model.fields import Field, spans

ATT_X, WKV, FFN_X = range(3)


def fields(config: ModelConfig) -> Sequence[Field]:
    """Previous input of the time mix, the heads' matrices, previous input of the channel mix."""
    return (Field("att_x"), Field("wkv", rows=config.head_size), Field("ffn_x"))


def tuned_rows(config: ModelConfig) -> TunedRows:
    """The heads' matrices, which files hold as (value, key), and the state as (key, value)."""
    wkv = spans(fields(config))[WKV]
    return TunedRows(wkv.row, wkv.rows, transposed=True)


def head_epsilon(config: ModelConfig) -> float:
    """What the normalization of a head adds to the variance.

    The division by head_size_divisor that RWKV-LM does before it is in here.
    """
    return config.layer_norm_epsilon * config.head_size_divisor**2


def require_heads(config: ModelConfig) -> None:
    """UsageError where the channels do not divide into heads."""
    if config.hidden_size % config.head_size:
        raise UsageError(
            f"model_config: hidden_size {config.hidden_size} is no multiple of head_size "
            f"{config.head_size}."
        )
