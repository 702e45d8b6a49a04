"""The store manager's B+ trees: sorted 32-bit keys, 32-bit values in the leaves.

A node is a page: u16 count, u8 level, u8 whether it is a leaf, (x64: padding,) pointer to the leftmost child, then the
entries: {u32 key, u32 value} in a leaf; {u32 key, (x64: padding,) pointer to the child whose keys are not below it} in
the others. Source: mandiant/win10_volatility's `_B_TREE`, ufrisk/MemProcFS' `_BTREE64`; bit 0 of a pointer to a leaf
that may leave RAM: the kernel's `NP_CONTEXT::NpLeafRefInternal`.
"""

from __future__ import annotations

import struct
from bisect import bisect_right

from coldframe.capabilities import ReadsMemory
from coldframe.errors import FormatError
from coldframe.memory import PAGE_SIZE

DEEPEST = 8
"""Levels: three of them hold a store's every page already."""
_RESIDENT = 1


class StoreTree:
    """A tree at `root` (kernel-virtual); nodes once read are kept, since trees do not change in a pause."""

    def __init__(self, memory: ReadsMemory, root: int, pointer_size: int, name: str) -> None:
        self.memory = memory
        self.root = root
        self.name = name
        self._pointer_size = pointer_size
        self._first_child = pointer_size
        self._header = 2 * pointer_size
        self._nodes: dict[int, tuple[bool, list[int], list[int]]] = {}

    def find(self, key: int) -> int | None:
        """The value of `key`, or None; raises `FormatError` for what is no tree, `UnreadableMemoryError`."""
        address = self.root
        for _ in range(DEEPEST):
            leaf, keys, values = self._node(address)
            at = bisect_right(keys, key)
            if leaf:
                return values[at - 1] if at and keys[at - 1] == key else None
            address = values[at]
        raise FormatError(f"store: {self.name} is deeper than {DEEPEST} nodes: a circle, at {address:#x}")

    def _node(self, address: int) -> tuple[bool, list[int], list[int]]:
        """Whether it is a leaf, its keys, and their values or (one more than keys) its children."""
        node = self._nodes.get(address)
        if node is None:
            node = self._nodes[address] = self._read(address)
        return node

    def _read(self, address: int) -> tuple[bool, list[int], list[int]]:
        at = address & ~_RESIDENT
        if not at >> (8 * self._pointer_size - 1):
            out = "a leaf of it is in the store itself, or it is no tree"
            raise FormatError(f"store: {self.name} leads to {address:#x}, which is no kernel address: {out}")
        head = self.memory.read(at, self._header)
        count, _level, leaf = struct.unpack_from("<HBB", head)
        size = 8 if leaf else self._header
        if self._header + count * size > PAGE_SIZE:
            raise FormatError(f"store: {self.name} has a node of {count} entries at {at:#x}, more than a page holds")
        data = self.memory.read(at + self._header, count * size)
        if leaf:
            words = struct.unpack(f"<{2 * count}I", data)
            return True, list(words[::2]), list(words[1::2])
        form = "<IxxxxQ" if self._pointer_size == 8 else "<II"
        entries = list(struct.iter_unpack(form, data))
        first = int.from_bytes(head[self._first_child :], "little")
        return False, [key for key, _ in entries], [first, *(child for _, child in entries)]
