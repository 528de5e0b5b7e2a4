"""The engine: an artifact on a device that reads token ids and says what may come next."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from mlc_rwkv_world.artifact.abi import BATCH_DECODE, DECODE, PREFILL
from mlc_rwkv_world.artifact.config import ChatConfig
from mlc_rwkv_world.artifact.index import ParameterIndex
from mlc_rwkv_world.artifact.layout import SHA256SUMS
from mlc_rwkv_world.artifact.search import Found, find
from mlc_rwkv_world.artifact.stopping import StopRule
from mlc_rwkv_world.artifact.tuned_state import TunedRows
from mlc_rwkv_world.errors import ArtifactError, StateError, UsageError, VocabularyError
from mlc_rwkv_world.runtime import tvm_runtime
from mlc_rwkv_world.runtime.answer import Answer
from mlc_rwkv_world.runtime.device import kind_of, open_device
from mlc_rwkv_world.runtime.generate import Generation, Progress
from mlc_rwkv_world.runtime.library import Library, open_library, open_listed
from mlc_rwkv_world.runtime.parameters import load_parameters
from mlc_rwkv_world.runtime.pool import Pool, Slot
from mlc_rwkv_world.runtime.sampler import Sampler, Sampling
from mlc_rwkv_world.runtime.state import State
from mlc_rwkv_world.runtime.stream import Stream
from mlc_rwkv_world.runtime.threads import launcher
from mlc_rwkv_world.runtime.threads import use as use_threads
from mlc_rwkv_world.tokenizer import WorldTokenizer

Logits = npt.NDArray[np.float32]
Ids = Sequence[int] | npt.NDArray[np.integer[Any]]


def load(
    model: str | Path,
    device: str = "auto",
    *,
    model_lib: str | Path | None = None,
    threads: int | None = None,
) -> Engine:
    """Open the artifact that `model` names on a device: "auto", "cpu", "cuda", "cuda:1", ...

    On a CPU it runs on `threads` threads, see `runtime.threads`; None is one for each core.

    `model` is a name, an artifact's folder, its `params` folder or its configuration file.
    `model_lib` is a library to run instead of those that the artifact lists.
    Raises NotFoundError where there is none, ArtifactError where it is damaged or does not
    fit this machine, TargetError where the device is missing.
    """
    return Engine(find(model, model_lib=model_lib), device, threads=threads)


class Engine:
    """A loaded model.

    Every method may be called from several threads, each with states of its own; calls into
    the compiled code take turns. A call that fails or is interrupted leaves the states that
    it was given as they were.
    """

    def __init__(self, found: Found, device: str = "auto", *, threads: int | None = None) -> None:
        """Open what `artifact.find` found; `load` does both.

        `folder` is then where it stands, and `notes` say which libraries there were passed over.
        """
        self.name = found.name
        self.folder = found.folder.resolve()
        self.config = ChatConfig.read(found.params)
        self.sampling = Sampling.from_config(self.config)
        index = ParameterIndex.read(found.params)
        index.check_files()
        self.identity = index.identity
        vocabulary = found.params / self.config.tokenizer_file
        if not vocabulary.exists():
            raise VocabularyError(f"{vocabulary} is missing. Build or copy the artifact again.")
        self.tokenizer = WorldTokenizer.from_file(vocabulary)
        self.library, self.notes = _open_library(found, device)
        self.device = self.library.device
        self._threads = threads
        self.enter_thread()
        self.metadata = self.library.metadata
        if self.tokenizer.token_count >= self.vocab_size:
            raise ArtifactError(
                f"{found.params} has a vocabulary of {self.tokenizer.token_count} tokens, and its "
                f"model knows only {self.vocab_size}. Build the model again."
            )
        self._parameters = load_parameters(index, self.library)
        self._functions = {
            name: self.library.function(name) for name in (PREFILL, DECODE, BATCH_DECODE)
        }
        self._lock = threading.Lock()
        self._pool = Pool(self._fresh(), self.device)

    @property
    def vocab_size(self) -> int:
        """How many logits the model gives, unused ids included."""
        return self.metadata.vocab_size

    @property
    def state_shape(self) -> tuple[int, int, int]:
        """The shape [L, R, D] of a state."""
        metadata = self.metadata
        rows = len(metadata.initial_rows)
        return (metadata.num_hidden_layers, rows, metadata.hidden_size)

    @property
    def tuned_rows(self) -> TunedRows | None:
        """Where a tuned state stands in a state; None where the model takes none."""
        return self.metadata.tuned_rows

    @property
    def launcher(self) -> int:
        """What shares work between the engine's threads, for `choose_all`; 0 beside a GPU."""
        return launcher() if kind_of(self.device) == "cpu" else 0

    def enter_thread(self) -> None:
        """Let calls from this thread run on as many threads as the engine was given.

        TVM has a pool for each thread that calls it, and knows only of that one. The thread that
        loaded the engine has entered; another that runs it enters once.
        """
        if kind_of(self.device) == "cpu":
            use_threads(self._threads)

    def new_state(self) -> State:
        """A state that has read nothing."""
        return State(self)

    def prefill(
        self, ids: Ids, state: State, progress: Progress = lambda done, total: None
    ) -> Logits:
        """Read `ids`, at least one; the logits [V] after the last of them.

        The state then has read them all or, where this raises, none. `progress` hears how many
        were read, and of how many.
        """
        return self.prefill_batch([ids], [state], progress).reshape(-1)

    def decode(self, token: int, state: State) -> Logits:
        """Read one token; the logits [V] after it."""
        return self.decode_batch([token], [state]).reshape(-1)

    def prefill_batch(
        self,
        ids: Sequence[Ids],
        states: Sequence[State],
        progress: Progress = lambda done, total: None,
    ) -> Logits:
        """Read `ids[b]`, at least one each, into `states[b]`, all different; logits [B, V]."""
        sequences = [self._check_ids(one) for one in ids]
        self._check_states(states, len(sequences))
        logits = np.empty((len(states), self.vocab_size), np.float32)
        before = [state.slot for state in states]
        after = self._take(len(states))
        done, total = 0, sum(map(len, sequences))
        for step in _schedule(
            [len(one) for one in sequences],
            self.metadata.prefill_chunk_size,
            self.metadata.max_batch_size,
        ):
            pieces = [sequences[b][start:end] for b, start, end in step]
            rows = [b for b, _, _ in step]
            # The last step of a sequence leaves the logits that count.
            slots = [(before[b], after[b]) for b in rows]
            logits[rows] = self._read(PREFILL, pieces, slots)
            # What follows of a sequence continues from there, and may replace it.
            for b in rows:
                before[b] = after[b]
            done += sum(map(len, pieces))
            progress(done, total)
        for state, slot, sequence in zip(states, after, sequences, strict=True):
            state.commit(slot, state.tokens_read + len(sequence))
        return logits

    def decode_batch(self, tokens: Ids, states: Sequence[State]) -> Logits:
        """Read one token into each of `states`, all different; logits [B, V]."""
        ids = self._check_ids(tokens)
        self._check_states(states, len(ids))
        size = self.metadata.max_batch_size
        groups = [slice(start, start + size) for start in range(0, len(ids), size)]
        function = DECODE if len(ids) == 1 else BATCH_DECODE
        after = self._take(len(states))
        slots = [(state.slot, new) for state, new in zip(states, after, strict=True)]
        logits = [self._read(function, [ids[group]], slots[group]) for group in groups]
        for state, slot in zip(states, after, strict=True):
            state.commit(slot, state.tokens_read + 1)
        return logits[0] if len(logits) == 1 else np.concatenate(logits)

    def generate(
        self,
        prompt: str | bytes | Ids,
        *,
        temperature: float | None = None,
        top_p: float | None = None,
        presence_penalty: float | None = None,
        frequency_penalty: float | None = None,
        repetition_penalty: float | None = None,
        penalty_decay: float | None = None,
        top_k: int | None = None,
        min_p: float | None = None,
        logit_bias: Mapping[int, float] | None = None,
        max_tokens: int | None = None,
        stop: str | Sequence[str] = (),
        seed: int | None = None,
        state: State | None = None,
        top_scores: int | None = None,
    ) -> Stream:
        """Read `prompt` and yield what follows, in pieces of whole characters.

        `generate(...).events()` gives an `Event` for each token instead; with `top_scores` they
        hold its log-probability, and so many others'. Both are there for `async for` too.

        It ends at the end-of-text token, before the first of the `stop` strings, or after
        `max_tokens` tokens. What is None comes from the model's configuration. With `state`,
        the prompt continues what that has read; however the generation ends, it has then
        read the prompt and the text that was yielded, nothing else.
        """
        options = {
            "temperature": temperature,
            "top_p": top_p,
            "presence_penalty": presence_penalty,
            "frequency_penalty": frequency_penalty,
            "repetition_penalty": repetition_penalty,
            "penalty_decay": penalty_decay,
            "top_k": top_k,
            "min_p": min_p,
            "logit_bias": logit_bias,
        }
        answer = Answer(
            self.tokenizer,
            self.sampler(self.sampling.changed(options), seed),
            stop=StopRule((stop,) if isinstance(stop, str) else tuple(stop)),
            max_tokens=max_tokens,
            top_scores=top_scores,
        )
        generation = Generation(self, self.new_state() if state is None else state, answer)
        ids = self.encode(prompt) if isinstance(prompt, str | bytes) else prompt
        return Stream(generation, self._check_ids(ids), settle=state is not None)

    def sampler(self, sampling: Sampling, seed: int | None = None) -> Sampler:
        """A sampler for this model's logits, which never chooses an id without a token."""
        usable = min(self.vocab_size, self.tokenizer.token_count + 1)
        return Sampler(sampling, seed, usable)

    def encode(self, text: str | bytes) -> npt.NDArray[np.int32]:
        """The ids of `text`, int32 [T]; UsageError for a str that has no UTF-8 form."""
        try:
            return self.tokenizer.encode_array(text)
        except UnicodeEncodeError as error:
            raise UsageError(
                f"The text is not valid UTF-8 (near character {error.start}). Give valid UTF-8."
            ) from None

    def fresh_slot(self) -> Slot:
        """The slot with the content of a new state."""
        return self._pool.fresh

    def read_slot(self, slot: Slot) -> npt.NDArray[np.float32]:
        """A copy of a slot's content, float32 [L, R, D]."""
        with self._lock:
            return self._pool.read(slot)

    def slot_of(self, content: npt.NDArray[np.float32]) -> Slot:
        """A slot with this content, float32 [L, R, D]."""
        with self._lock:
            slot = self._pool.take()
            self._pool.write(slot, content)
        return slot

    def _take(self, count: int) -> list[Slot]:
        with self._lock:
            return [self._pool.take() for _ in range(count)]

    def _fresh(self) -> Logits:
        content = np.empty(self.state_shape, np.float32)
        content[:] = np.array(self.metadata.initial_rows, np.float32)[:, None]
        return content

    def _read(
        self,
        function: str,
        pieces: Sequence[npt.NDArray[np.int32]],
        slots: Sequence[tuple[Slot, Slot]],
    ) -> Logits:
        """Run `function` on sequences, each from one slot to another; the logits [B, V]."""
        arguments = [np.concatenate(pieces) if len(pieces) > 1 else pieces[0]]
        if function == PREFILL:
            arguments.append(np.cumsum([0, *map(len, pieces)], dtype=np.int32))
        arguments.append(np.array([(a.index, b.index) for a, b in slots], np.int32))
        given = [self._to_device(argument) for argument in arguments]
        with self._lock:
            try:
                logits, _ = self._functions[function](*given, self._pool.tensor, self._parameters)
            except Exception as error:
                raise self.library.failure(function, error) from error
        # On a CPU no copy is needed: nobody else holds this tensor, and the array keeps it alive.
        on_cpu = kind_of(self.device) == "cpu"
        return cast(Logits, np.from_dlpack(logits) if on_cpu else tvm_runtime.array(logits))

    def _to_device(self, array: npt.NDArray[np.int32]) -> Any:
        return tvm_runtime.tensor(array, self.device)

    def _check_ids(self, ids: Ids) -> npt.NDArray[np.int32]:
        try:
            array = np.asarray(ids)
        except ValueError:
            raise UsageError("Token ids are one sequence of integers.") from None
        if array.ndim != 1 or array.size == 0:
            raise UsageError("There is nothing to read: give at least one token.")
        if array.dtype.kind not in "iu":
            raise UsageError(f"Token ids are integers, and these are {array.dtype}.")
        low, high = int(array.min()), int(array.max())
        if low < 0 or high >= self.vocab_size:
            wrong = low if low < 0 else high
            raise UsageError(f"Token id {wrong} is not in 0..{self.vocab_size - 1}.")
        return array.astype(np.int32, copy=False)

    def _check_states(self, states: Sequence[State], count: int) -> None:
        if len(states) != count:
            raise UsageError(f"{count} sequences were given with {len(states)} states.")
        if len({id(state) for state in states}) != count:
            raise UsageError("A state was given twice; copy it to read two things into it.")
        if not all(isinstance(state, State) for state in states):
            raise UsageError("What was given as a state is none. Make one with new_state().")
        if any(state.engine is not self for state in states):
            raise StateError("A state belongs to another engine. Make it with new_state().")


def _open_library(found: Found, device: str) -> tuple[Library, list[str]]:
    """The library that runs the model on a device, and what was passed over."""
    if not found.kinds:
        raise ArtifactError(
            f"{found.folder} has parameters but no compiled library{_unlisted(found)}. Build the "
            "model for this machine, or name a library (--model-lib) that you trust as a program."
        )
    opened = open_device(device, found.kinds)
    paths = found.libraries_for(kind_of(opened))
    if not paths:
        raise ArtifactError(
            f"{found.folder} has libraries for {', '.join(sorted(found.kinds))}, and none for "
            f"{kind_of(opened)}{_unlisted(found)}. Build the model for it."
        )
    if found.chosen is not None:
        return open_library(found.chosen, opened), []
    library, passed = open_listed({path: found.libraries[path] for path in paths}, opened)
    skipped = [f"{path} is not listed in {SHA256SUMS} and does not run." for path in found.unlisted]
    return library, [*skipped, *passed]


def _unlisted(found: Found) -> str:
    """What lies there all the same, for a message that no library does."""
    names = ", ".join(path.name for path in found.unlisted)
    return f" that {SHA256SUMS} lists ({names} is not listed and does not run)" if names else ""


def _schedule(
    lengths: Sequence[int], chunk_size: int, batch_size: int
) -> Iterator[list[tuple[int, int, int]]]:
    """Cut sequences into steps of at most `chunk_size` tokens and `batch_size` sequences.

    A step is a list of (sequence, start, end); the sequences fill it in their order, so that
    only the last of a step can be cut.
    """
    step: list[tuple[int, int, int]] = []
    room = chunk_size
    for sequence, length in enumerate(lengths):
        start = 0
        while start < length:
            end = min(length, start + room)
            step.append((sequence, start, end))
            room -= end - start
            start = end
            if room == 0 or len(step) == batch_size:
                yield step
                step, room = [], chunk_size
    if step:
        yield step
