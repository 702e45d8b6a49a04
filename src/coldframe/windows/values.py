"""Numbers read from the guest that know what they mean: pointers, constants of enums, times."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from coldframe.errors import UsageError
from coldframe.symbols.model import Enum, Reference, Type
from coldframe.windows.fields import type_name

if TYPE_CHECKING:
    from coldframe.windows.typed import Struct, TypedMemory

_EPOCH = datetime(1601, 1, 1, tzinfo=UTC)


class Pointer(int):
    """An address read from the guest, which knows what it points at. An `int` in every other respect."""

    target: Type
    _typed: TypedMemory

    def __new__(cls, value: int, target: Type, typed: TypedMemory) -> Pointer:
        """Make a pointer of `value` to `target`, in the memory of `typed`."""
        self = super().__new__(cls, value)
        self.target = target
        self._typed = typed
        return self

    def dereference(self) -> Any:
        """What the pointer points at: a `Struct`, a number, an `Array`; raises `UsageError` for void and code."""
        return self._typed.value(self.target, self)

    def struct(self, name: str | None = None) -> Struct:
        """The structure pointed at, or one of type `name` at that address."""
        if name is None:
            if not isinstance(self.target, Reference):
                raise UsageError(f"a pointer to {type_name(self.target)} does not point at a structure; give its type")
            name = self.target.name
        return self._typed.struct(name, self)

    def __repr__(self) -> str:
        return f"{int(self):#x}"


class EnumValue(int):
    """A number of an enum, with its name (None for a number that has none)."""

    name: str | None

    def __new__(cls, value: int, enum: Enum) -> EnumValue:
        """Make the constant of `enum` that is `value`."""
        self = super().__new__(cls, value)
        self.name = next((name for name, constant in enum.constants.items() if constant == value), None)
        return self

    def __str__(self) -> str:
        return self.name if self.name is not None else str(int(self))

    def __repr__(self) -> str:
        return f"{int(self)} ({self.name})" if self.name is not None else str(int(self))


def filetime(ticks: int) -> datetime | None:
    """A FILETIME (100 ns steps since 1601, UTC) as a `datetime`; None for zero and for what no calendar holds."""
    if not ticks:
        return None
    try:
        return _EPOCH + timedelta(microseconds=ticks // 10)
    except OverflowError:
        return None
