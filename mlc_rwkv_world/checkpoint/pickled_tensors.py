"""Reads the pickle inside a torch file without executing it.

A pickle is a program for a small stack machine, and Python's own machine can import and
call whatever the program names. This one knows only the instructions that torch writes
for a dictionary of tensors, and the names that these need stay names: nothing is
imported, called, or set on any object. Whatever else a file asks for is refused by name.
"""

from __future__ import annotations

import math
import pickletools
import struct
from dataclasses import dataclass
from typing import Any, Final

from mlc_rwkv_world.checkpoint.stored import ITEM_SIZES, MAX_AXES
from mlc_rwkv_world.checkpoint.wording import quoted
from mlc_rwkv_world.errors import CheckpointError

_STORAGES = {
    ("torch", "DoubleStorage"): "float64",
    ("torch", "FloatStorage"): "float32",
    ("torch", "HalfStorage"): "float16",
    ("torch", "BFloat16Storage"): "bfloat16",
    ("torch", "LongStorage"): "int64",
    ("torch", "IntStorage"): "int32",
    ("torch", "ShortStorage"): "int16",
    ("torch", "CharStorage"): "int8",
    ("torch", "ByteStorage"): "uint8",
    ("torch", "BoolStorage"): "bool",
}
_REBUILD_TENSOR = ("torch._utils", "_rebuild_tensor_v2")
# What torch writes for element types that came after its typed storages.
_REBUILD_TYPED_TENSOR = ("torch._utils", "_rebuild_tensor_v3")
_BYTES = ("torch.storage", "UntypedStorage")
_DTYPES = {("torch", name): name for name in ITEM_SIZES}
_REBUILD_PARAMETER = ("torch._utils", "_rebuild_parameter")
_ORDERED_DICT = ("collections", "OrderedDict")
_SIZE = ("torch", "Size")
_ADMITTED = {
    _REBUILD_TENSOR,
    _REBUILD_TYPED_TENSOR,
    _BYTES,
    _REBUILD_PARAMETER,
    _ORDERED_DICT,
    _SIZE,
    *_STORAGES,
    *_DTYPES,
}

# Tensors of a kind that has no plain numbers to read, by the function that torch makes them with.
_OTHER_KINDS = {
    "_rebuild_qtensor": "a quantized tensor",
    "_rebuild_sparse_tensor": "a sparse tensor",
    "_rebuild_sparse_csr_tensor": "a sparse tensor",
    "_rebuild_nested_tensor": "a nested tensor",
    "_rebuild_meta_tensor_no_storage": "a tensor without its values",
    "_rebuild_device_tensor_from_numpy": "a tensor of another device",
}

# An RWKV of 61 blocks with an optimizer's state takes some 300,000 instructions. Each adds at
# most a small object, so that these bound time and memory as well.
_MAX_STEPS = 1 << 19
# Python hashes an integer to itself below this; above it, keys can be made to collide.
_MAX_KEY = 1 << 60


@dataclass(frozen=True)
class _Global:
    """A name that the pickle may mention. It refers to nothing."""

    name: tuple[str, str]


@dataclass(frozen=True)
class PickledStorage:
    """`size` elements of type `dtype` in the archive's entry `data/<key>`."""

    key: str
    dtype: str
    size: int


@dataclass(frozen=True)
class PickledTensor:
    """A view into a storage, checked to lie inside it; offset and strides count elements."""

    storage: PickledStorage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Mark:
    """Stands on the stack where a run of items begins."""


_MARK: Final = _Mark()


def read_pickled_tensors(data: bytes, source: str) -> Any:
    """What the pickle `data` describes, made of dicts, lists, tuples, scalars and PickledTensor.

    `source` begins the messages. Takes time and memory in proportion to `data`, up to some 60 MB.
    Raises CheckpointError where the pickle asks for anything else, is garbled, or goes on for more
    than half a million instructions.
    """
    return _Machine(data, source).run()


class _Machine:
    def __init__(self, data: bytes, source: str) -> None:
        self._data = data
        self._source = source
        self._place = 0
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        for _ in range(_MAX_STEPS):
            opcode = self._take(1)
            if opcode == b".":
                result = self._pop()
                if self._stack or self._place != len(self._data):
                    raise self._garbled("it goes on after its end")
                return result
            step = _STEPS.get(opcode)
            if step is None:
                raise self._refused(f"the pickle instruction {_opcode_name(opcode)}")
            step(self)
        raise self._garbled(f"it goes on after {_MAX_STEPS} instructions")

    # Input

    def _take(self, count: int) -> bytes:
        part = self._data[self._place : self._place + count]
        if len(part) != count:
            raise self._garbled("it ends in the middle")
        self._place += count
        return part

    def _number(self, layout: str) -> int:
        (value,) = struct.unpack(layout, self._take(struct.calcsize(layout)))
        return int(value)

    def _text(self, count: int) -> str:
        raw = self._take(count)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise self._garbled(f"text {raw[:20]!r} is not UTF-8") from None

    def _line(self) -> str:
        end = self._data.find(b"\n", self._place)
        if end < 0:
            raise self._garbled("it ends in the middle")
        text = self._text(end - self._place)
        self._place = end + 1
        return text

    # Stack

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _pop(self) -> Any:
        if not self._stack or self._stack[-1] is _MARK:
            raise self._garbled("its stack is empty where a value is needed")
        return self._stack.pop()

    def _pop_to_mark(self) -> list[Any]:
        for place in range(len(self._stack) - 1, -1, -1):
            if self._stack[place] is _MARK:
                items = self._stack[place + 1 :]
                del self._stack[place:]
                return items
        raise self._garbled("a run of items has no beginning")

    def _top(self, kind: type) -> Any:
        if not self._stack or not isinstance(self._stack[-1], kind):
            raise self._garbled(f"there is no {kind.__name__} to fill")
        return self._stack[-1]

    # Instructions

    def protocol(self) -> None:
        self._take(1)

    def frame(self) -> None:
        self._take(8)

    def mark(self) -> None:
        self._push(_MARK)

    def float_(self) -> None:
        (value,) = struct.unpack(">d", self._take(8))
        self._push(value)

    def long1(self) -> None:
        self._push(int.from_bytes(self._take(self._number("<B")), "little", signed=True))

    def tuple_of(self, count: int) -> None:
        items = [self._pop() for _ in range(count)]
        self._push(tuple(reversed(items)))

    def tuple_(self) -> None:
        self._push(tuple(self._pop_to_mark()))

    def append(self) -> None:
        item = self._pop()
        self._top(list).append(item)

    def appends(self) -> None:
        items = self._pop_to_mark()
        self._top(list).extend(items)

    def set_item(self) -> None:
        value, key = self._pop(), self._pop()
        self._set_items([key, value])

    def set_items(self) -> None:
        self._set_items(self._pop_to_mark())

    def _set_items(self, items: list[Any]) -> None:
        target = self._top(dict)
        if len(items) % 2:
            raise self._garbled("a dictionary has a key without a value")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Hashing a nest of tuples can take for ever.
            if not isinstance(key, (str, int, float, bool, type(None))):
                raise self._garbled(f"a dictionary has a {type(key).__name__} as key")
            if isinstance(key, int) and not -_MAX_KEY < key < _MAX_KEY:
                raise self._garbled("a dictionary has a number beyond all counting as key")
            if key in target:
                raise CheckpointError(
                    f"{self._source} holds {quoted(key)} twice; every tensor must be there once."
                )
            target[key] = value

    def put(self, index: int) -> None:
        value = self._pop()
        self._memo[index] = value
        self._push(value)

    def memoize(self) -> None:
        self.put(len(self._memo))

    def get(self, index: int) -> None:
        if index not in self._memo:
            raise self._garbled(f"it refers to value {index}, which is not there")
        self._push(self._memo[index])

    def global_(self) -> None:
        module, name = self._line(), self._line()
        self._push(self._admit(module, name))

    def stack_global(self) -> None:
        name, module = self._pop(), self._pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise self._garbled("a name is not text")
        self._push(self._admit(module, name))

    def _admit(self, module: str, name: str) -> _Global:
        if (module, name) not in _ADMITTED:
            if kind := _other_kind(module, name):
                raise CheckpointError(
                    f"{self._source} holds {kind} ({quoted(f'{module}.{name}')}; it was not "
                    "executed), expected plain tensors of float32, float16 or bfloat16. Give the "
                    "checkpoint that it was made from."
                )
            raise self._refused(f"{quoted(f'{module}.{name}')}")
        return _Global((module, name))

    def build(self) -> None:
        # torch hangs a `_metadata` attribute on a state dictionary; it says nothing of tensors.
        self._pop()
        self._top(dict)

    def persistent_id(self) -> None:
        match self._pop():
            case ("storage", _Global(kind), str(key), str(), int(size)) if (
                kind in _STORAGES or kind == _BYTES
            ):
                if size < 0:
                    raise self._garbled(f"a storage has {size} elements")
                self._push(PickledStorage(key, _STORAGES.get(kind, "uint8"), size))
            case _:
                raise self._garbled("a tensor's storage is described in an unknown way")

    def reduce(self) -> None:
        arguments, function = self._pop(), self._pop()
        match function, arguments:
            case _Global(name), () if name == _ORDERED_DICT:
                self._push({})
            case _Global(name), (tuple(items),) if name == _SIZE:
                self._push(items)
            case _Global(name), (PickledTensor() as tensor, *_) if name == _REBUILD_PARAMETER:
                self._push(tensor)
            case _Global(name), (
                PickledStorage() as storage,
                int(offset),
                tuple(shape),
                tuple(strides),
                *_,
            ) if name == _REBUILD_TENSOR:
                self._push(self._tensor(storage, offset, shape, strides))
            case _Global(name), (
                PickledStorage(key, "uint8", nbytes),
                int(offset),
                tuple(shape),
                tuple(strides),
                _,
                _,
                _Global(dtype),
                *_,
            ) if name == _REBUILD_TYPED_TENSOR and dtype in _DTYPES:
                kind = _DTYPES[dtype]
                typed = PickledStorage(key, kind, nbytes // ITEM_SIZES[kind])
                self._push(self._tensor(typed, offset, shape, strides))
            case _:
                raise self._garbled("a tensor is described in an unknown way")

    def _tensor(
        self,
        storage: PickledStorage,
        offset: int,
        shape: tuple[Any, ...],
        strides: tuple[Any, ...],
    ) -> PickledTensor:
        numbers = (offset, *shape, *strides)
        if len(shape) != len(strides) or len(shape) > MAX_AXES:
            raise self._garbled(f"a tensor has {len(shape)} axes and {len(strides)} strides")
        if not all(type(n) is int and 0 <= n < 1 << 48 for n in numbers):
            raise self._garbled("a tensor's shape, strides or offset are not plain numbers")
        size = math.prod(shape)
        last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
        if size > 0 and (last >= storage.size or size > storage.size):
            raise self._garbled(
                f"a tensor of shape {list(shape)} does not fit its storage of {storage.size} "
                f"elements of {ITEM_SIZES[storage.dtype]} bytes"
            )
        return PickledTensor(storage, offset, shape, strides)

    # Errors

    def _garbled(self, what: str) -> CheckpointError:
        return CheckpointError(
            f"{self._source}: its list of tensors is garbled: {what}. The file is damaged or "
            "forged: use another copy."
        )

    def _refused(self, what: str) -> CheckpointError:
        return CheckpointError(
            f"{self._source} asks for {what}, which a checkpoint has no need of; it was not "
            "executed. Only tensors are read: save the model's state_dict() alone, or do not "
            "trust this file."
        )


def _other_kind(module: str, name: str) -> str | None:
    if module.split(".")[0] == "numpy":
        return "a numpy array or number"
    return _OTHER_KINDS.get(name) if module.startswith("torch") else None


def _opcode_name(opcode: bytes) -> str:
    names = {known.code: known.name for known in pickletools.opcodes}
    return names.get(opcode.decode("latin-1"), repr(opcode))


_STEPS: Final = {
    b"\x80": _Machine.protocol,
    b"\x95": _Machine.frame,
    b"(": _Machine.mark,
    b"N": lambda m: m._push(None),
    b"\x88": lambda m: m._push(True),
    b"\x89": lambda m: m._push(False),
    b"K": lambda m: m._push(m._number("<B")),
    b"M": lambda m: m._push(m._number("<H")),
    b"J": lambda m: m._push(m._number("<i")),
    b"\x8a": _Machine.long1,
    b"G": _Machine.float_,
    b"\x8c": lambda m: m._push(m._text(m._number("<B"))),
    b"X": lambda m: m._push(m._text(m._number("<I"))),
    b"\x8d": lambda m: m._push(m._text(m._number("<Q"))),
    b")": lambda m: m._push(()),
    b"\x85": lambda m: m.tuple_of(1),
    b"\x86": lambda m: m.tuple_of(2),
    b"\x87": lambda m: m.tuple_of(3),
    b"t": _Machine.tuple_,
    b"]": lambda m: m._push([]),
    b"a": _Machine.append,
    b"e": _Machine.appends,
    b"}": lambda m: m._push({}),
    b"s": _Machine.set_item,
    b"u": _Machine.set_items,
    b"q": lambda m: m.put(m._number("<B")),
    b"r": lambda m: m.put(m._number("<I")),
    b"\x94": _Machine.memoize,
    b"h": lambda m: m.get(m._number("<B")),
    b"j": lambda m: m.get(m._number("<I")),
    b"c": _Machine.global_,
    b"\x93": _Machine.stack_global,
    b"b": _Machine.build,
    b"Q": _Machine.persistent_id,
    b"R": _Machine.reduce,
}
