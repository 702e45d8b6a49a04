"""A breakpoint in a module that is not loaded yet, in a process that may not run yet: it is set when the module comes.

Images are seen where the kernel announces them (see `debug.events`). Where the module's symbols cannot be found then,
because its headers are not in RAM yet, it is tried again at each system call of the process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from coldframe.debug.breakpoint import Breakpoint
from coldframe.debug.condition import Condition
from coldframe.debug.events import decode_image
from coldframe.debug.hit import Hit
from coldframe.errors import FormatError, NotFoundError, SymbolFileNotFoundError, UnreadableMemoryError, UsageError
from coldframe.windows.module import Module
from coldframe.windows.process import Process

if TYPE_CHECKING:
    from coldframe.debug.live import LiveGuest

_IMAGES = "PsCallImageNotifyRoutines"
_SERVICES = ("KiSystemCall64", "KiSystemCall64Shadow")


class PendingBreakpoint(Breakpoint):
    """Made by `LiveGuest.break_on` with `pending`. `address` is 0 until the module is loaded.

    `process` is the process's name, or the process. Once set it stays with the process in which the module was found.
    """

    def __init__(
        self,
        guest: LiveGuest,
        module: str,
        symbol: str,
        offset: int,
        process: Process | str,
        *,
        kind: str,
        condition: Condition | str | None,
        once: bool,
    ) -> None:
        name = f"{module}!{symbol}" + (f"+{offset:#x}" if offset else "")
        super().__init__(guest, name, 0, kind=kind, condition=condition, once=once)
        self._wanted = module.lower()
        self._symbol = symbol
        self._offset = offset
        self._process = process
        self._module: Module | None = None
        self._watchers: list[Breakpoint] = []

    @property
    def is_pending(self) -> bool:
        """Whether the module has not been found yet."""
        return self.address == 0

    @property
    def is_set(self) -> bool:
        """Whether it is set, or waits for its module."""
        return bool(self._watchers) or super().is_set

    def insert(self) -> None:
        """Set it, or begin to wait for its module; raises as `Breakpoint.insert` does."""
        if not self.is_pending:
            super().insert()
        elif not self._watchers:
            self._watch(_IMAGES, self._image_came)

    def remove(self) -> None:
        """Take it out of the guest, or stop waiting."""
        self._stop_watching()
        super().remove()

    def _watch(self, name: str, seen: Condition, process: Process | None = None) -> None:
        watcher = self.guest.break_on(name, process, condition=seen)
        watcher.insert()
        self._watchers.append(watcher)

    def _stop_watching(self) -> None:
        watchers, self._watchers = self._watchers, []
        for watcher in watchers:
            watcher.remove()

    def _image_came(self, hit: Hit) -> bool:
        """Look at an image that the kernel announces; never a hit itself."""
        image = decode_image(hit)
        process, base = image.process, image.base
        if process is None or base is None or not self._is_wanted(process):
            return False
        file = image.name.rpartition("\\")[2]
        if self._wanted in (file.lower(), file.lower().rpartition(".")[0]):
            self._module = Module(
                self.guest, process.memory, name=file, base=base, size=image.size or 0, path=image.name
            )
            if not self._set(process):
                for name in _SERVICES:
                    if self.guest.variable(name) is not None:
                        self._watch(name, self._try_again, process)
        return False

    def _is_wanted(self, process: Process) -> bool:
        return process.is_called(self._process) if isinstance(self._process, str) else process == self._process

    def _try_again(self, hit: Hit) -> bool:
        self._set(hit.process)
        return False

    def _set(self, process: Process) -> bool:
        """Set the breakpoint if the module's symbols can be had now."""
        assert self._module is not None
        try:
            self.address = self._module.symbol(self._symbol) + self._offset
        except (SymbolFileNotFoundError, UnreadableMemoryError, FormatError):
            return False
        self.eprocess = process.eprocess.address
        self._stop_watching()
        super().insert()
        return True


def pending(
    guest: LiveGuest,
    where: str | int,
    process: Process | str | int | None,
    *,
    kind: str,
    condition: Condition | str | None,
    once: bool,
) -> PendingBreakpoint:
    """A breakpoint on `MODULE!SYMBOL` of a process by name or pid; raises `UsageError` for anything else."""
    module, bang, rest = str(where).partition("!")
    symbol, plus, offset = rest.partition("+")
    if not bang or not symbol or process is None:
        raise UsageError(f"a breakpoint that waits for its module is on MODULE!SYMBOL of a process, not on {where!r}")
    if isinstance(process, int):
        process = guest.process(process)
    try:
        return PendingBreakpoint(
            guest, module, symbol, int(offset, 0) if plus else 0, process, kind=kind, condition=condition, once=once
        )
    except ValueError:
        raise UsageError(f"cannot read {where!r}: expected MODULE!SYMBOL with an optional +0x10") from None


def is_loaded(guest: LiveGuest, where: str | int, process: Process | str | int | None) -> bool:
    """Whether the module that `where` names is loaded in `process` now (True where no module is named)."""
    if not isinstance(where, str) or "!" not in where:
        return True
    try:
        found = guest.process(process) if isinstance(process, str | int) else process
        (guest.module if found is None else found.module)(where.partition("!")[0])
    except NotFoundError:
        return False
    return True
