"""Which symbol an address lies in: by the module's PDB, else by the names that its image exports."""

from __future__ import annotations

from bisect import bisect_right
from weakref import WeakKeyDictionary

from coldframe.errors import ColdframeError, FormatError, SymbolFileNotFoundError, UnreadableMemoryError
from coldframe.symbols.model import Symbols
from coldframe.windows.module import Module


class _Exports:
    """Exported names in the order of their RVAs."""

    def __init__(self, module: Module) -> None:
        pairs = sorted((rva, name) for name, rva in module.image().exports())
        self._rvas = [rva for rva, _ in pairs]
        self._names = [name for _, name in pairs]

    def nearest(self, rva: int) -> tuple[str, int] | None:
        index = bisect_right(self._rvas, rva) - 1
        return (self._names[index], rva - self._rvas[index]) if index >= 0 else None


class Names:
    """Names of addresses, for one guest. What was found for a `Module` is kept as long as that object lives."""

    def __init__(self) -> None:
        self._found: WeakKeyDictionary[Module, Symbols] = WeakKeyDictionary()
        self._exports: WeakKeyDictionary[Module, _Exports] = WeakKeyDictionary()

    def nearest(self, module: Module, address: int) -> tuple[str, int] | None:
        """The symbol of `module` at or below `address` and the distance in bytes; None where nothing names it."""
        rva = address - module.base
        symbols = self._symbols(module)
        if symbols is not None:
            return symbols.nearest(rva)
        try:
            exports = self._exports.get(module)
            if exports is None:
                exports = self._exports[module] = _Exports(module)
        except (FormatError, UnreadableMemoryError):
            return None
        return exports.nearest(rva)

    def _symbols(self, module: Module) -> Symbols | None:
        found = self._found.get(module)
        if found is not None:
            return found
        try:
            found = module.symbols.symbols
        except SymbolFileNotFoundError:
            return None
        except ColdframeError as error:  # a PDB that is damaged names nothing, and must not end a stack walk
            module.guest.warn(f"symbols of {module.name}: {error}")
            return None
        self._found[module] = found
        return found
