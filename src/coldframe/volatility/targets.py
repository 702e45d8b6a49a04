"""The guests that volatility3's layers read from. Knows nothing of volatility3.

volatility3 copies its layers, and builds them anew from a configuration of words and numbers. So a layer keeps the name
of its target alone, and finds here the guest, opened once in the process and closed at its end.
"""

from __future__ import annotations

import atexit
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from coldframe.paging import AddressSpace
from coldframe.target import open_target
from coldframe.windows import Guest
from coldframe.windows.bare import FRAME

_opened: dict[str, Target] = {}
_closing = ExitStack()


class Target:
    """An opened guest and the address spaces asked for so far."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        self.physical = guest.physical
        self._spaces: dict[int, AddressSpace] = {}

    def space(self, dtb: int) -> AddressSpace:
        """The address space of `dtb`, with the VADs of the listed process that it belongs to, if it does."""
        dtb &= FRAME
        if not self._spaces:
            self._spaces = {process.dtb: process.memory for process in self.guest.processes}
        if dtb not in self._spaces:
            self._spaces[dtb] = AddressSpace(self.guest.resolver, dtb)
        return self._spaces[dtb]


def find(name: str, symbols: Sequence[Path] = ()) -> Target:
    """The target of that name (an image's path, a QMP socket's, a libvirt domain), opened the first time.

    A running guest is paused until this process ends. Raises what `coldframe.target.open_target` raises.
    """
    if name not in _opened:
        _opened[name] = Target(_closing.enter_context(open_target(name, symbols=symbols)))
    return _opened[name]


def close() -> None:
    """Close all targets; a guest that ran when it was attached to runs on."""
    _opened.clear()
    _closing.close()


atexit.register(close)
