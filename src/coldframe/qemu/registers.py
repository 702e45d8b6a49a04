"""Where each register lies in the gdbstub's answers, read from its own target description (XML).

The formats are in GDB's manual, "Target Descriptions". QEMU adds to the standard x86-64 registers the segment bases,
control registers and EFER, under the names used throughout coldframe (`fs_base`, `k_gs_base`, `cr3`, `efer`). Those of
qemu-system-i386 are half as wide and called `eax` to `edi` and `eip`; they go by their names of 64 bits here too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from xml.etree import ElementTree

from coldframe.errors import FormatError, NotFoundError, UsageError

_DEEPEST_INCLUDE = 8
_MOST_REGISTERS = 4096
_WIDEST = 4096  # bits

GENERAL = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", *(f"r{n}" for n in range(8, 16)))
"""The general registers, in the order of the gdbstub's answer to x86-64."""
_NARROW = {f"e{name[1:]}": name for name in (*GENERAL[:8], "rip")}


class RegisterNotFoundError(NotFoundError, KeyError):
    """A register that the processor does not have; a `KeyError` too, so that `get` and `in` answer."""

    __str__ = Exception.__str__


@dataclass(frozen=True, slots=True)
class Field:
    """One register: its number for `p`/`P`, and its place in the answer to `g`, in bytes."""

    number: int
    offset: int
    size: int


class RegisterLayout:
    """The registers of a target description, by name in lower case.

    `general` are the names of those of `GENERAL` that the processor has; `places` are those of the answer's bytes.
    """

    def __init__(self, fields: Mapping[str, Field]) -> None:
        self.fields = dict(fields)
        self.general = tuple(name for name in GENERAL if name in self.fields)
        self.places = {name: slice(field.offset, field.offset + field.size) for name, field in self.fields.items()}
        self.size = max((field.offset + field.size for field in self.fields.values()), default=0)

    def encoded(self, name: str, value: int) -> bytes:
        """`value`, signed or not, as the register `name` holds it; raises `UsageError` where it does not fit."""
        size = self.fields[name].size
        bits = 8 * size
        if not -(1 << bits - 1) <= value < 1 << bits:
            raise UsageError(f"register {name} cannot be {value:#x}: it has {bits} bits")
        return (value % (1 << bits)).to_bytes(size, "little")

    @classmethod
    def read(cls, document: Callable[[str], bytes]) -> RegisterLayout:
        """Read the description that starts at `target.xml`; `document` returns a part of it by name."""
        fields: dict[str, Field] = {}
        position = number = 0
        for name, bits, given in _registers(document, "target.xml", 0):
            number = number if given is None else given
            size = (bits + 7) // 8
            fields.setdefault(_NARROW.get(name, name), Field(number, position, size))
            position += size
            number += 1
            if len(fields) > _MOST_REGISTERS:
                raise FormatError("the gdbstub's target description has too many registers")
        if "rip" not in fields:
            raise FormatError(f"the gdbstub describes no x86 processor; its registers: {', '.join(list(fields)[:8])}")
        return cls(fields)


def _registers(document: Callable[[str], bytes], name: str, depth: int) -> Iterator[tuple[str, int, int | None]]:
    """(name, width in bits, number if given) of each register of the document and of those it includes, in order."""
    if depth > _DEEPEST_INCLUDE:
        raise FormatError("the gdbstub's target description includes itself")
    text = document(name)
    text = text.replace(b"<xi:", b"<")  # QEMU does not declare the prefix
    text = re.sub(rb"<!DOCTYPE[^>\[]*(\[[^\]]*\])?[^>]*>", b"", text)  # no entities: the document is not trusted
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise FormatError(f"the gdbstub's target description {name!r} is no XML: {error}") from None
    for element in root.iter():
        tag = element.tag.rpartition("}")[2]
        if tag == "include":
            yield from _registers(document, element.get("href", ""), depth + 1)
        elif tag == "reg":
            bits, given = element.get("bitsize", "0"), element.get("regnum")
            if not bits.isdigit() or int(bits) > _WIDEST or (given is not None and not given.isdigit()):
                raise FormatError(f"the gdbstub describes register {element.get('name')!r} with {bits!r} bits")
            yield element.get("name", "?").lower(), int(bits), None if given is None else int(given)


class Registers(Mapping[str, int]):
    """The registers of one vCPU at one stop, by name; decoded when asked for."""

    __slots__ = ("_layout", "_raw")

    def __init__(self, layout: RegisterLayout, raw: bytes) -> None:
        self._layout = layout
        self._raw = raw

    def __getitem__(self, name: str) -> int:
        try:
            return int.from_bytes(self._raw[self._layout.places[name]], "little")
        except KeyError:
            raise RegisterNotFoundError("register", name, self._layout.fields) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._layout.fields)

    def __len__(self) -> int:
        return len(self._layout.fields)

    def __repr__(self) -> str:
        return "<Registers " + " ".join(f"{name}={self[name]:#x}" for name in self if len(name) < 4) + ">"

    @property
    def layout(self) -> RegisterLayout:
        """Where the registers lie in `raw`."""
        return self._layout

    @property
    def raw(self) -> bytes:
        """The answer to `g`, decoded from hex."""
        return self._raw

    def replaced(self, values: Mapping[str, int]) -> Registers:
        """A copy with some registers changed."""
        raw = bytearray(self._raw)
        for name, value in values.items():
            raw[self._layout.places[name]] = self._layout.encoded(name, value)
        return Registers(self._layout, bytes(raw))
