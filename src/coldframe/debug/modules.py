"""Which module an address lies in, asked at every hit: module lists are walked only when they may have changed.

A list of a hundred modules is some thousand reads; a stack needs three of its modules. So what a list said is kept
beyond a pause, and a module of it is believed only while the headers at its base are the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from coldframe.errors import ColdframeError, UnreadableMemoryError
from coldframe.windows.guest import Guest
from coldframe.windows.module import Module, holding
from coldframe.windows.process import Process

_HEADER = 0x400
"""Bytes of an image that tell it from another one: its PE headers with the timestamp, checksum and sizes."""
_MOST_PROCESSES = 256


@dataclass(slots=True)
class _Known:
    """A list as it was read, and the headers of those modules that were asked for."""

    modules: Sequence[Module]
    headers: dict[int, bytes]


class ModuleFinder:
    """Finds modules by address, for one guest."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._known: dict[tuple[int, int], _Known] = {}

    def at(self, address: int, process: Process | None) -> Module | None:
        """The module that `address` lies in: of the kernel, or of `process`. None also where the lists are damaged."""
        if address in self._guest.kernel:
            return self._guest.kernel
        is_user = address < self._guest.kernel_start
        if is_user and process is None:
            return None
        owner = process if is_user else None
        try:
            return self._guest.once(("module of page", address >> 12, owner), lambda: self._find(address, owner))
        except ColdframeError as error:
            self._guest.warn(f"modules: {error}")
            return None

    def _find(self, address: int, process: Process | None) -> Module | None:
        key = self._key(process)
        known = self._known.get(key)
        if known is not None:
            module = holding(known.modules, address)
            if module is not None and self._same(module, known):
                return module
        modules = self._guest.drivers if process is None else process.modules
        if len(self._known) >= _MOST_PROCESSES:
            self._known.clear()
        known = self._known[key] = _Known(modules, known.headers if known is not None else {})
        module = holding(modules, address)
        if module is not None:
            self._note(module, known)
        return module

    def _key(self, process: Process | None) -> tuple[int, int]:
        if process is None:
            return 0, 0
        created = process.eprocess.address_of("CreateTime")
        return process.eprocess.address, self._guest.memory.u64(created)

    def _note(self, module: Module, known: _Known) -> None:
        try:
            known.headers[module.base] = module.memory.read(module.base, _HEADER)
        except UnreadableMemoryError:  # cannot be checked later, so the list is walked again then
            known.headers.pop(module.base, None)

    def _same(self, module: Module, known: _Known) -> bool:
        before = known.headers.get(module.base)
        if before is None:
            return False
        try:
            return module.memory.read(module.base, _HEADER) == before
        except UnreadableMemoryError:
            return False
