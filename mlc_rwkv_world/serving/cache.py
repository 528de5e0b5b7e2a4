"""States that earlier prompts have left, by the token ids that they have read.

A tree over ids holds checkpoints: what a model remembers after some ids is good for every prompt
that begins with just these, and for no other, since a recurrent state cannot be cut back. The text
has no part in it: one text may be read as several sequences of ids.

Beyond its budget the cache forgets the checkpoint that is missed least: the one behind which the
least would have to be read again, from the checkpoint before it. So the middle of a long path thins
out, and its first and last checkpoints stay longest; what was not used for long goes first.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int32]
Content = npt.NDArray[np.float32]

# Down to this part of its budget a full cache is thinned, so that it is not done each time.
_LEAVES = 0.9
# How much more the first and the last checkpoint of a path are worth than their place says.
_ENDS = 4.0


class Shelf(Protocol):
    """A slower, larger place for checkpoints, a folder for one."""

    def keep(self, origin: str, ids: Ids, content: Content) -> None:
        """Take a checkpoint; it may be lost."""

    def fetch(self, origin: str, ids: Ids) -> Content | None:
        """The content of what was kept, None where it is gone or damaged."""

    def kept(self) -> Iterator[tuple[str, Ids]]:
        """The checkpoints that were kept when this process began."""


@dataclass
class _Checkpoint:
    """A state's content, None where only the shelf has it, and when it was used."""

    content: Content | None
    used: int


class _Node:
    """A place in the tree: `label` are the ids that lead there from its parent."""

    __slots__ = ("checkpoint", "children", "depth", "label", "parent")

    def __init__(self, label: Ids, parent: _Node | None) -> None:
        self.label = label
        self.parent = parent
        self.depth: int = len(label) + (parent.depth if parent is not None else 0)
        self.children: dict[int, _Node] = {}
        self.checkpoint: _Checkpoint | None = None


class StateCache:
    """Checkpoints by ids, of `budget` bytes at most. To be used by one thread.

    Each `origin`, the name of a state that prompts begin from, has a tree of its own.
    """

    def __init__(self, budget: int, shelf: Shelf | None = None) -> None:
        self.budget = budget
        self.bytes = 0
        self._shelf = shelf
        self._roots: dict[str, _Node] = {}
        self._held: set[_Node] = set()
        self._clock = 0
        if shelf is not None:
            for origin, ids in shelf.kept():
                self._node_at(origin, ids).checkpoint = _Checkpoint(None, 0)

    def __len__(self) -> int:
        """How many checkpoints are in memory."""
        return len(self._held)

    def find(self, ids: Ids, origin: str = "") -> tuple[int, Content | None]:
        """The longest checkpoint that `ids`, at least one of them unread, begins with.

        Gives how many ids it has read, and its content, which nobody may change; 0 and None where
        there is none.
        """
        found = self._deepest(ids, origin)
        while found is not None:
            content = self._content(found, origin)
            if content is not None:
                self._clock += 1
                place: _Node | None = found
                while place is not None:
                    if place.checkpoint is not None:
                        place.checkpoint.used = self._clock
                    place = place.parent
                return found.depth, content
            found = self._deepest(ids, origin)
        return 0, None

    def reach(self, ids: Ids, origin: str = "") -> int:
        """How many of `ids` the checkpoint has read that `find` would give; touches nothing."""
        found = self._deepest(ids, origin)
        return 0 if found is None else found.depth

    def holds(self, ids: Ids, origin: str = "") -> bool:
        """Whether there is a checkpoint after just these `ids`."""
        return self._path(ids, origin)[-1:] == [len(ids)]

    def put(self, ids: Ids, content: Content, origin: str = "") -> None:
        """Keep `content`, which nobody may change any more, as what `ids` have left."""
        if content.nbytes > self.budget or len(ids) == 0:
            return
        self._clock += 1
        node = self._node_at(origin, ids)
        if node.checkpoint is not None and node.checkpoint.content is not None:
            node.checkpoint.used = self._clock
            return
        self._hold(node, content)
        if self._shelf is not None:
            self._shelf.keep(origin, ids, content)

    def forget(self, origin: str) -> None:
        """Drop all that began from `origin`."""
        root = self._roots.pop(origin, None)
        for node in list(self._held) if root is not None else []:
            if _root_of(node) is root:
                self._release(node)

    def _hold(self, node: _Node, content: Content) -> None:
        node.checkpoint = _Checkpoint(content, self._clock)
        self._held.add(node)
        self.bytes += content.nbytes
        if self.bytes > self.budget:
            self._thin(keep=node)

    def _release(self, node: _Node) -> None:
        """Take a checkpoint's content out of memory."""
        assert node.checkpoint is not None and node.checkpoint.content is not None
        self.bytes -= node.checkpoint.content.nbytes
        self._held.discard(node)
        if self._shelf is None:
            node.checkpoint = None
            _prune(node)
        else:
            node.checkpoint.content = None

    def _content(self, node: _Node, origin: str) -> Content | None:
        """A checkpoint's content, fetched where it is not in memory; None where it is lost."""
        checkpoint = node.checkpoint
        assert checkpoint is not None
        if checkpoint.content is None and self._shelf is not None:
            content = self._shelf.fetch(origin, _ids_of(node))
            if content is None:
                node.checkpoint = None
                _prune(node)
            else:
                self._hold(node, content)
            return content
        return checkpoint.content

    def _thin(self, keep: _Node) -> None:
        order = itertools.count()
        heap = [(self._worth(node), next(order), node) for node in self._held if node is not keep]
        heapq.heapify(heap)
        while self.bytes > _LEAVES * self.budget and heap:
            before, _, node = heap[0]
            # What was forgotten meanwhile can have made this worth more, and never less.
            worth = self._worth(node)
            if worth > before:
                heapq.heapreplace(heap, (worth, next(order), node))
            else:
                heapq.heappop(heap)
                self._release(node)

    def _worth(self, node: _Node) -> float:
        """How much is lost with a checkpoint: tokens to read again, less the longer it lay."""
        assert node.checkpoint is not None
        before = node.parent
        while before is not None and (
            before.checkpoint is None or before.checkpoint.content is None
        ):
            before = before.parent
        again = node.depth - (0 if before is None else before.depth)
        ends = _ENDS if before is None or not node.children else 1.0
        return again * ends / (1 + self._clock - node.checkpoint.used)

    def _path(self, ids: Ids, origin: str) -> list[int]:
        """The lengths of the checkpoints that `ids` begins with."""
        return [n.depth for n in self._walk(ids, origin) if n.checkpoint is not None]

    def _deepest(self, ids: Ids, origin: str) -> _Node | None:
        found = None
        for node in self._walk(ids[:-1], origin):
            if node.checkpoint is not None:
                found = node
        return found

    def _walk(self, ids: Ids, origin: str) -> Iterator[_Node]:
        """The nodes that `ids` passes."""
        node = self._roots.get(origin)
        while node is not None and node.depth < len(ids):
            child = node.children.get(int(ids[node.depth]))
            if child is None or not np.array_equal(child.label, ids[node.depth : child.depth]):
                return
            yield child
            node = child

    def _node_at(self, origin: str, ids: Ids) -> _Node:
        """The node after `ids`, made where it is not there."""
        node = self._roots.setdefault(origin, _Node(ids[:0].copy(), None))
        while node.depth < len(ids):
            rest = ids[node.depth :]
            child = node.children.get(int(rest[0]))
            if child is None:
                child = _Node(rest.copy(), node)
                node.children[int(rest[0])] = child
                return child
            same = common(child.label, rest)
            node = child if same == len(child.label) else _split(child, same)
        return node


def common(first: Ids, second: Ids) -> int:
    """How many ids at their beginnings are the same."""
    length = min(len(first), len(second))
    different = np.flatnonzero(first[:length] != second[:length])
    return int(different[0]) if len(different) else length


def _split(node: _Node, length: int) -> _Node:
    """A new node `length` ids behind the parent of `node`, which then hangs on it."""
    parent = node.parent
    assert parent is not None
    middle = _Node(node.label[:length].copy(), parent)
    parent.children[int(middle.label[0])] = middle
    node.label, node.parent = node.label[length:].copy(), middle
    middle.children[int(node.label[0])] = node
    return middle


def _prune(node: _Node) -> None:
    """Take away nodes that lead to no checkpoint, and join those that part nothing."""
    while node.parent is not None and node.checkpoint is None and not node.children:
        del node.parent.children[int(node.label[0])]
        node = node.parent
    if node.parent is not None and node.checkpoint is None and len(node.children) == 1:
        (child,) = node.children.values()
        child.label = np.concatenate([node.label, child.label])
        child.parent = node.parent
        node.parent.children[int(child.label[0])] = child


def _ids_of(node: _Node) -> Ids:
    labels = []
    place: _Node | None = node
    while place is not None:
        labels.append(place.label)
        place = place.parent
    return np.concatenate(labels[::-1])


def _root_of(node: _Node) -> _Node:
    while node.parent is not None:
        node = node.parent
    return node
