"""`mlc-chat-config.json`, as our builder and stock `mlc_llm gen_config` write it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlc_rwkv_world.artifact.json_fields import Fields
from mlc_rwkv_world.artifact.layout import CHAT_CONFIG, MODEL_TYPE, TOKENIZER_MODEL
from mlc_rwkv_world.artifact.links import require_inside
from mlc_rwkv_world.errors import ArtifactError

# Sampling of the World demos, for configurations that say nothing.
TEMPERATURE = 1.0
TOP_P = 0.3
PRESENCE_PENALTY = 0.4
FREQUENCY_PENALTY = 0.4
REPETITION_PENALTY = 1.0

# The fields of ours, which no stock engine reads.
OURS, TEMPLATE, THINK = "rwkv_world", "template", "think"


@dataclass(frozen=True)
class ChatConfig:
    """What running a model needs to know beside its parameters.

    `conversation` is the content of `conv_template`, or None where the file has none. `template`
    is the name of one of ours, and `think` its mode, where the file says so. `model_version` is
    RWKV's.
    Fields that the file holds beyond these are ignored.
    """

    path: Path
    quantization: str
    vocab_size: int
    prefill_chunk_size: int
    temperature: float
    top_p: float
    presence_penalty: float
    frequency_penalty: float
    repetition_penalty: float
    tokenizer_file: str
    conversation: dict[str, Any] | None
    template: str | None
    think: str | None
    model_version: int

    @classmethod
    def read(cls, folder: Path) -> ChatConfig:
        """The configuration in the `params` folder `folder`.

        Raises ArtifactError where it is missing, damaged, or another kind of model's.
        """
        path = folder / CHAT_CONFIG
        require_inside(path)
        fields = Fields.read(path)
        model_type = fields.text("model_type")
        if model_type != MODEL_TYPE:
            raise ArtifactError(
                f"{path} is for a model of type {model_type!r}; this program runs {MODEL_TYPE!r}."
            )
        model = fields.object("model_config")
        conversation = fields.values.get("conv_template")
        if conversation is not None and not isinstance(conversation, dict):
            # mlc_llm also knows templates by name, which are not ours.
            conversation = None
        ours = fields.object(OURS, {})
        return cls(
            path=path,
            quantization=fields.text("quantization"),
            vocab_size=fields.integer("vocab_size", model.integer("vocab_size", 65536), minimum=1),
            prefill_chunk_size=fields.integer(
                "prefill_chunk_size", model.integer("prefill_chunk_size", 128), minimum=1
            ),
            temperature=fields.number("temperature", TEMPERATURE),
            top_p=fields.number("top_p", TOP_P),
            presence_penalty=fields.number("presence_penalty", PRESENCE_PENALTY),
            frequency_penalty=fields.number("frequency_penalty", FREQUENCY_PENALTY),
            repetition_penalty=fields.number("repetition_penalty", REPETITION_PENALTY),
            tokenizer_file=_tokenizer_file(folder, fields),
            conversation=conversation,
            template=ours.text(TEMPLATE, "") or None,
            think=ours.text(THINK, "") or None,
            # Older configurations are all RWKV-4's.
            model_version=fields.object("model_config", {}).integer("model_version", 4),
        )


def _tokenizer_file(folder: Path, fields: Fields) -> str:
    names = fields.texts("tokenizer_files", [TOKENIZER_MODEL]) or [TOKENIZER_MODEL]
    # mlc_llm copies every tokenizer file that it finds; the World vocabulary is this one.
    name = TOKENIZER_MODEL if TOKENIZER_MODEL in names else names[0]
    # No file system takes longer names, nor some of these characters.
    plain = name.isprintable() and Path(name).name == name and len(name.encode()) <= 255
    if name in (".", "..") or not plain:
        raise fields.error("tokenizer_files", "plain names of files in the same folder")
    require_inside(folder / name)
    return name
