"""Where a breakpoint goes, as users say it: an address, a symbol of the kernel, or `module!symbol`, with an optional
`+0x10`; and whose it is: a process, its name or its pid."""

from __future__ import annotations

from coldframe.errors import SymbolFileNotFoundError, SymbolNotFoundError, UsageError
from coldframe.windows.guest import Guest
from coldframe.windows.module import Module
from coldframe.windows.process import Process


def owner(guest: Guest, process: Process | str | int | None) -> Process | None:
    """The process that is meant, if one is; raises `NotFoundError`."""
    return guest.process(process) if isinstance(process, str | int) else process


def locate(guest: Guest, where: str | int, process: Process | None) -> tuple[int, str]:
    """The address of `where` and its name as debuggers write it.

    Raises `NotFoundError`, `SymbolNotFoundError` with near names, and `UsageError` for what names no place.
    """
    if isinstance(where, int):
        return _checked(guest, where, hex(where)), guest.symbolize(where, process)
    text, plus, offset_text = where.strip().partition("+")
    offset = _number(offset_text, where) if plus else 0
    if text[:2].lower() == "0x":
        address = _checked(guest, _number(text, where) + offset, where)
        return address, guest.symbolize(address, process)
    module_name, bang, symbol = text.rpartition("!")
    if not symbol or (bang and not module_name):
        raise _unread(where)
    module = _module(guest, module_name, process) if bang else guest.kernel
    name = f"{module.stem}!{symbol}" + (f"+{offset:#x}" if offset else "")
    return _checked(guest, _symbol(module, symbol) + offset, where), name


def _module(guest: Guest, name: str, process: Process | None) -> Module:
    return guest.module(name) if process is None else process.module(name)


def _symbol(module: Module, name: str) -> int:
    """By the PDB, else by the image's exports."""
    try:
        return module.symbol(name)
    except (SymbolFileNotFoundError, SymbolNotFoundError) as error:
        exported = dict(module.image().exports()) if not module.is_kernel else {}
        if name in exported:
            return module.base + exported[name]
        if isinstance(error, SymbolNotFoundError) or not exported:
            raise
        raise SymbolNotFoundError(f"export of {module.name}", name, exported, hint=str(error)) from None


def _checked(guest: Guest, address: int, where: str) -> int:
    """`address`, if the processor can come there: its upper bits are all equal."""
    if not guest.resolver.format.is_canonical(address):
        raise UsageError(f"{where!r} is at {address:#x}, which is no address of this processor's")
    return address


def _number(text: str, where: str) -> int:
    try:
        number = int(text.strip(), 0)
    except ValueError:
        raise _unread(where) from None
    if number < 0:
        raise _unread(where)
    return number


def _unread(where: str) -> UsageError:
    return UsageError(f"cannot read {where!r}: expected an address, a symbol, or module!symbol with an optional +0x10")
