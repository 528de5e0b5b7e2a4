"""Which entry of a file that training wrote holds the weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlc_rwkv_world.checkpoint.file_kind import resave_command
from mlc_rwkv_world.checkpoint.names import canonical_name, is_models_own
from mlc_rwkv_world.checkpoint.pickled_tensors import PickledTensor
from mlc_rwkv_world.checkpoint.wording import listed, quoted
from mlc_rwkv_world.errors import CheckpointError

# Trainers nest their weights one or two deep.
_DEEPEST = 3
_LONGEST_KEY = 64


def weights_of(path: Path, content: Any) -> dict[str, PickledTensor]:
    """The tensors of the one model in `content`, which is what the file `path` holds.

    A training file has them under some key, beside the optimizer's state, counters and whatever
    else. Raises CheckpointError where no entry or several hold a model, naming the entries.
    """
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path} holds a {type(content).__name__}, expected a dictionary of tensors: save "
            "the model's state_dict()."
        )
    if "_strategy" in content:
        raise CheckpointError(
            f"{path} was converted by ChatRWKV for one strategy: its matrices are turned and its "
            "embeddings normalized. Give the checkpoint that it was converted from."
        )
    if all(isinstance(value, PickledTensor) for value in content.values()):
        entry = content
    else:
        entry = _only_model(path, content)
    return {name: value for name, value in entry.items() if _is_weight(path, name, value)}


def _only_model(path: Path, content: dict[Any, Any]) -> dict[Any, Any]:
    models = list(_models(content))
    if not models:
        name, value = next(
            (name, value) for name, value in content.items() if not isinstance(value, PickledTensor)
        )
        raise CheckpointError(
            f"{path}: entry {quoted(name)} is a {type(value).__name__}, expected a tensor, and no "
            f"entry of the file ({listed(content)}) holds an RWKV's tensors ('emb.weight', "
            "'blocks.0.att.key.weight' and so on): save the model's state_dict() alone."
        )
    if len(models) > 1:
        keys = [key for key, _ in models]
        part = "".join(f"[{name!a}]" for name in keys[0])
        raise CheckpointError(
            f"{path} holds several models, in its entries "
            f"{listed(['.'.join(map(str, key)) for key in keys], 8)}. Save the one that you mean "
            "alone"
            + (f", as in: {resave_command(path, part)}" if len(part) <= _LONGEST_KEY else ".")
        )
    return models[0][1]


def _models(content: dict[Any, Any]) -> Iterator[tuple[tuple[Any, ...], dict[Any, Any]]]:
    """Every dictionary in `content` that holds a model's tensors, with the keys that lead there."""
    pending: list[tuple[tuple[Any, ...], dict[Any, Any]]] = [((), content)]
    # One dictionary can be referred to from many places, itself among them.
    seen = {id(content)}
    for keys, entry in pending:
        if any(
            isinstance(name, str)
            and isinstance(value, PickledTensor)
            and is_models_own(canonical_name(name))
            for name, value in entry.items()
        ):
            yield keys, entry
        elif len(keys) < _DEEPEST:
            for name, value in entry.items():
                if isinstance(value, dict) and id(value) not in seen:
                    seen.add(id(value))
                    pending.append(((*keys, name), value))


def _is_weight(path: Path, name: object, value: object) -> bool:
    """Whether this entry beside a model's tensors is one; CheckpointError where it has to be."""
    if isinstance(name, str) and isinstance(value, PickledTensor):
        return True
    if isinstance(value, PickledTensor):
        raise CheckpointError(
            f"{path}: entry {quoted(name)} is a tensor under a {type(name).__name__}, expected a "
            "name: save the model's state_dict() alone."
        )
    if isinstance(name, str) and is_models_own(canonical_name(name)):
        raise CheckpointError(
            f"{path}: entry {quoted(name)} is a {type(value).__name__}, expected a tensor: save "
            "the model's state_dict() alone."
        )
    return False
