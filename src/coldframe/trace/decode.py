r"""A call's arguments as plain data: numbers, and for what they point at or name, what is there at that moment.

Shapes, by the kinds of `coldframe.debug.prototypes` (addresses, handles and masks are "0x..." strings):

- a number: `int`; a mask or an opaque address: "0x..."
- a handle: `{"handle", "type", "name"}`, as far as the handle table tells (`\Users\minint\a.txt` for a file)
- a string: `{"address", "text"}`; object attributes: `{"address", "name", "root"}`; a number that an address points
  at: `{"address", "value"}`
- bytes that the call reads: `{"address", "size", "data", "pages"}`: data in hex; for each page its state, its
  indirections, and its reason if it cannot be read; "truncated" when a limit cut data short, "missing" names the
  parts that could not be read, which are zeros in data

What cannot be read says why in "error"; no argument keeps another one from being decoded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from coldframe.debug.hit import Hit
from coldframe.debug.prototypes import Parameter, Prototype
from coldframe.errors import ColdframeError, UnreadableMemoryError
from coldframe.memory import PAGE_SIZE
from coldframe.paging import AddressSpace
from coldframe.windows.guest import Guest
from coldframe.windows.wow64 import Narrow, text32

Value: TypeAlias = "int | str | bool | list[Value] | dict[str, Value] | None"

_NUMBERS = ("u8", "u32", "u64", "i32")
_ALL = (1 << 32) - 1
_CURRENT = {(1 << 64) - 1: "current process", (1 << 64) - 2: "current thread"}
_UNTYPED = 4
_NARROW = 4
"""Bytes of a word in 32-bit code."""
_LONGEST_STRING = 0x8000
_AT_END, _AT_POSITION = (1 << 64) - 1, (1 << 64) - 2
"""FILE_WRITE_TO_END_OF_FILE and FILE_USE_FILE_POINTER_POSITION (wdm.h), as whole 64-bit numbers."""


def arguments(hit: Hit, prototype: Prototype | None, data_limit: int) -> dict[str, Value]:
    """The arguments of the call that `hit` stands at the beginning of; buffers up to `data_limit` bytes.

    Without a prototype, the four register arguments as "arg0" to "arg3".
    """
    if prototype is None:
        return {f"arg{number}": f"{hit.args[number]:#x}" for number in range(_UNTYPED)}
    raw: dict[str, int | None] = {}
    values = hit.args
    for number, parameter in enumerate(prototype.parameters):
        try:
            raw[parameter.name] = values[number]
        except UnreadableMemoryError:
            raw[parameter.name] = None
    decoder = _Decoder(hit, raw, data_limit)
    return {parameter.name: decoder.decode(parameter) for parameter in prototype.parameters}


def file_offset(hit: Hit, handle: int, pointer: int) -> int | None:
    """The byte offset at which NtReadFile or NtWriteFile will begin, `pointer` being its ByteOffset argument.

    Without one (or with the two special values), the file object's position, and None for "at the end of the file".
    """
    value = _AT_POSITION
    if pointer:
        value = hit.memory.u64(pointer)
    if value == _AT_END:
        return None
    if value != _AT_POSITION:
        return value
    found = hit.guest.handle(hit.process, handle)
    if found is None or found.object.type != "File":
        return None
    return hit.guest.struct("_FILE_OBJECT", found.object.address).integer("CurrentByteOffset.QuadPart")


class _Decoder:
    def __init__(self, hit: Hit, raw: Mapping[str, int | None], data_limit: int) -> None:
        self._hit = hit
        self._guest: Guest = hit.guest
        self._memory = hit.memory
        self._raw = raw
        self._data_limit = data_limit

    def decode(self, parameter: Parameter) -> Value:
        value = self._raw[parameter.name]
        if value is None:
            return {"error": "its place on the stack is not in RAM"}
        try:
            return self._value(parameter, value)
        except ColdframeError as error:
            return {"address": f"{value:#x}", "error": str(error)}

    def _value(self, parameter: Parameter, value: int) -> Value:
        kind = parameter.kind
        if kind in _NUMBERS:
            return value - (1 << 32) if kind == "i32" and value >> 31 else value
        if kind == "access":
            return f"{value:#x}"
        if kind == "handle":
            return self._handle(value)
        if not value or kind in ("ptr", "out"):
            if parameter.name == "ByteOffset" and not value:
                return self._offset(value)
            return f"{value:#x}"
        match kind:
            case "in":
                size = self._raw.get(parameter.length or "")
                return _buffer(self._memory, value, size or 0, self._data_limit)
            case "ustr":
                return {"address": f"{value:#x}", "text": self._text(value)}
            case "oa":
                return self._object_attributes(value)
            case "pi64" if parameter.name == "ByteOffset":
                return self._offset(value)
            case "pi64":
                number = self._memory.u64(value)
                return {"address": f"{value:#x}", "value": number - (1 << 64) if number >> 63 else number}
            case "phandle":
                return {"address": f"{value:#x}", "value": f"{self._word(value):#x}"}
            case "pu64":
                return {"address": f"{value:#x}", "value": f"{self._word(value):#x}"}
            case "pu32":
                return {"address": f"{value:#x}", "value": self._memory.u32(value)}
            case "cid":
                pid, tid = (self._member("_CLIENT_ID", value, name) for name in ("UniqueProcess", "UniqueThread"))
                return {"address": f"{value:#x}", "pid": pid, "tid": tid}
            case _:
                return f"{value:#x}"

    def _offset(self, value: int) -> Value:
        handle = self._raw.get("FileHandle")
        return {"address": f"{value:#x}", "value": file_offset(self._hit, handle or 0, value)}

    def _handle(self, value: int) -> Value:
        shown: dict[str, Value] = {"handle": f"{value:#x}"}
        current = _CURRENT.get(value | _ALL << 32 if self._hit.word == _NARROW else value)
        if current is not None:
            return shown | {"name": current}
        if not value:
            return "0x0"
        try:
            found = self._guest.handle(self._hit.process, value)
        except UnreadableMemoryError as error:
            return shown | {"error": error.reason}
        if found is not None:
            shown["type"] = found.object.type
            shown["name"] = found.object.name
        return shown

    def _word(self, address: int) -> int:
        """A pointer, a handle or a SIZE_T of the caller's."""
        return int.from_bytes(self._memory.read(address, self._hit.word), "little")

    def _member(self, record: str, address: int, name: str) -> int:
        """A member of one of the caller's structures, which are narrow in 32-bit code of a 64-bit guest."""
        types = self._guest.types
        if self._hit.word == types.pointer_size:
            return self._guest.struct(record, address, self._memory).integer(name)
        return self._memory.u32(address + Narrow(types).offset(record, name))

    def _text(self, address: int) -> str:
        """What the `_UNICODE_STRING` at `address` in the process says."""
        if self._hit.word < self._guest.types.pointer_size:
            return text32(self._memory, address)
        return self._guest.struct("_UNICODE_STRING", address, self._memory).text

    def _object_attributes(self, address: int) -> Value:
        name, root = (self._member("_OBJECT_ATTRIBUTES", address, member) for member in ("ObjectName", "RootDirectory"))
        return {
            "address": f"{address:#x}",
            "name": self._text(name) if name else None,
            "root": self._handle(root) if root else None,
        }


def _buffer(memory: AddressSpace, address: int, size: int, limit: int) -> Value:
    """The bytes of a buffer and how each of its pages was found."""
    length = min(size, limit)
    data, holes = memory.read_padded(address, length)
    pages: list[Value] = []
    for start in range(address & ~(PAGE_SIZE - 1), address + length, PAGE_SIZE):
        page = memory.resolve(start)
        shown: dict[str, Value] = {
            "address": f"{start:#x}",
            "state": str(page.state),
            "via": [str(via) for via in page.via],
        }
        if page.reason:
            shown["reason"] = page.reason
        pages.append(shown)
    shown = {"address": f"{address:#x}", "size": size, "data": data.hex(), "pages": pages}
    if length < size:
        shown["truncated"] = True
    if holes:
        shown["missing"] = [{"address": f"{at:#x}", "size": count} for at, count in holes]
    return shown
