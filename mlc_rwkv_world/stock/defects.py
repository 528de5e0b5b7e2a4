"""Defects of mlc_llm that reach RWKV World, and what is done about each. docs/plugin.md says more.

A defect that a version has fixed gets that version in `fixed_in`, and is then left alone there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Defect:
    """`answer` says what the plugin or the library does, or what the user can do."""

    name: str
    symptom: str
    answer: str
    fixed_in: str | None = None

    def present_in(self, version: str | None) -> bool:
        """Whether a host of this version has it; one without a version is taken to."""
        if self.fixed_in is None or version is None:
            return True
        return _numbers(version) < _numbers(self.fixed_in)


def _numbers(version: str) -> tuple[int, ...]:
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, match[0].split("."))) if match else ()


DEFECTS = (
    Defect(
        "moved_names",
        "importing any model fails on TVM 0.27 (relax.Constant, relax.StringImm)",
        "the names are aliased",
    ),
    Defect(
        "prefix_cache",
        "the same prompt twice gives two answers (prefix cache)",
        "turned off for this model",
    ),
    Defect(
        "history",
        "tens of gigabytes reserved for a history of states",
        "one state for each sequence",
    ),
    Defect(
        "prefill_mode",
        "a second request during an answer ends the engine (hybrid prefill)",
        "chunked prefill for this model",
    ),
    Defect(
        "no_chunks",
        "a prompt longer than the prefill chunk ends the engine",
        "the library reads 8192 tokens at once, more than the engine lets in",
    ),
    Defect(
        "sequence_length",
        "a prompt and its answer have 4096 tokens at most, though nothing of the model asks for it",
        "not corrected, since the engine lets nobody set it; mlc_chat_cli has no limit",
    ),
    Defect(
        "short_sum",
        "a draw beyond the sum of all probabilities ends the engine",
        "the library's add up to at least 1",
    ),
    Defect(
        "no_admission",
        "more requests than max_num_sequence end the engine",
        "they wait in AsyncMLCEngine",
    ),
    Defect(
        "text_before_stop",
        "text that shares a token with the beginning of a stop string is lost",
        "not corrected; mlc_chat_cli keeps it",
    ),
    Defect(
        "simultaneous_prefill",
        "simultaneous prompts are read as one",
        "the library tells them apart",
    ),
    Defect(
        "unfinished_characters",
        "characters that span tokens raise an error or vanish",
        "text comes from our tokenizer",
    ),
    Defect(
        "ids_without_token",
        "ids above the host's token table end the engine",
        "the library gives them no probability",
    ),
    Defect(
        "bfloat16_storage",
        "float32 weights are stored as bfloat16",
        "our converter stores them as they are",
    ),
    Defect(
        "vocabulary_eval",
        "the vocabulary file is evaluated as Python",
        "our reader parses it",
    ),
    Defect(
        "compile_cache",
        "compiled libraries are kept when their kernels have changed",
        "our revision and a checksum of our code are part of the key",
    ),
    Defect(
        "hidden_fields",
        "an engine hangs where the configuration lacks head_size or num_heads",
        "our configurations have them",
    ),
    Defect(
        "silent_engine",
        "an exception in the engine's thread leaves its caller waiting",
        "not corrected; what is known to raise one is kept from it",
    ),
    Defect(
        "token_postproc",
        "tokenizer_info.token_postproc_method 'raw' is refused",
        "our configurations say byte_fallback, which changes no World token",
    ),
    Defect(
        "quadratic_tokenizer",
        "its World tokenizer needs quadratic time",
        "link ours into its library: third_party/tokenizers_cpp",
    ),
    Defect(
        "template",
        "the template lacks a blank line and ends with a space",
        "replaced",
    ),
)


def present(name: str, version: str | None) -> bool:
    """Whether a host of this version has the defect of this name."""
    return next(defect for defect in DEFECTS if defect.name == name).present_in(version)
