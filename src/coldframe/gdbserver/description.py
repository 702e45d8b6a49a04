"""The registers as a client sees them: GDB's target descriptions of x86-64 and i386 as data, and values in their order.

Source: GDB's manual, "Target Descriptions" and "Standard Target Features", "i386 Features"; a client takes a register's
number from its place in the description. What no thread has a value of is sent as `x`: "unavailable".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from coldframe.errors import FormatError

_VARIABLE = re.compile(r"\$(\w+)")
_FLOATING = ("fctrl", "fstat", "ftag", "fiseg", "fioff", "foseg", "fooff", "fop")
_SEGMENTS = ("cs", "ss", "ds", "es", "fs", "gs")
_WIDE = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", *(f"r{number}" for number in range(8, 16)))
_NARROW = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi")
_CONTROL = ("k_gs_base", "cr0", "cr2", "cr3", "cr4", "cr8", "efer")

_VECTOR = """\
    <vector id="v4f" type="ieee_single" count="4"/>
    <vector id="v2d" type="ieee_double" count="2"/>
    <vector id="v16i8" type="int8" count="16"/>
    <vector id="v8i16" type="int16" count="8"/>
    <vector id="v4i32" type="int32" count="4"/>
    <vector id="v2i64" type="int64" count="2"/>
    <union id="vec128">
      <field name="v4_float" type="v4f"/>
      <field name="v2_double" type="v2d"/>
      <field name="v16_int8" type="v16i8"/>
      <field name="v8_int16" type="v8i16"/>
      <field name="v4_int32" type="v4i32"/>
      <field name="v2_int64" type="v2i64"/>
      <field name="uint128" type="uint128"/>
    </union>
"""


@dataclass(frozen=True, slots=True)
class Register:
    """One register: coldframe's `name` for it (that of 64 bits), the client's, and its place in the answer to `g`."""

    name: str
    shown: str
    size: int
    offset: int
    kind: str
    feature: str


class Description:
    """The registers of x86-64 (`wide`) or i386, in the client's order."""

    def __init__(self, *, wide: bool) -> None:
        self.wide = wide
        self.word = 8 if wide else 4
        found: list[Register] = []

        def add(feature: str, kind: str, size: int, *names: str) -> None:
            for name in names:
                shown = name if wide or not name.startswith("r") else "e" + name[1:]
                offset = found[-1].offset + found[-1].size if found else 0
                found.append(Register(name, shown, size, offset, kind, feature))

        core, sse, number = "org.gnu.gdb.i386.core", "org.gnu.gdb.i386.sse", f"int{8 * self.word}"
        for name in (*(_WIDE if wide else _NARROW), "rip"):
            pointer = {"rip": "code_ptr", "rsp": "data_ptr", "rbp": "data_ptr"}
            add(core, pointer.get(name, number), self.word, name)
        add(core, "i386_eflags", 4, "eflags")
        add(core, "int32", 4, *_SEGMENTS)
        add(core, "i387_ext", 10, *(f"st{slot}" for slot in range(8)))
        add(core, "int", 4, *_FLOATING)
        add(sse, "vec128", 16, *(f"xmm{slot}" for slot in range(16 if wide else 8)))
        add(sse, "i386_mxcsr", 4, "mxcsr")
        add("org.gnu.gdb.i386.segments", number, self.word, "fs_base", "gs_base")
        control = [name for name in _CONTROL if wide or name in {"cr0", "cr2", "cr3", "cr4"}]
        add("coldframe.i386.control", number, self.word, *control)
        self.registers = tuple(found)
        self.size = found[-1].offset + found[-1].size
        self.numbers = {register.name: number for number, register in enumerate(found)}

    def xml(self) -> str:
        """target.xml."""
        lines = [
            '<?xml version="1.0"?>',
            '<!DOCTYPE target SYSTEM "gdb-target.dtd">',
            '<target version="1.0">',
            f"  <architecture>{'i386:x86-64' if self.wide else 'i386'}</architecture>",
            "  <osabi>none</osabi>",  # "Windows" has gdbs that were built without it refuse the whole description
        ]
        for feature in dict.fromkeys(register.feature for register in self.registers):
            lines.append(f'  <feature name="{feature}">')
            if feature == "org.gnu.gdb.i386.core":
                lines.append(_flags("i386_eflags", _EFLAGS))
            elif feature == "org.gnu.gdb.i386.sse":
                lines += [_VECTOR.rstrip(), _flags("i386_mxcsr", _MXCSR)]
            lines += [
                f'    <reg name="{register.shown}" bitsize="{8 * register.size}" type="{register.kind}"'
                f' regnum="{self.numbers[register.name]}"/>'
                for register in self.registers
                if register.feature == feature
            ]
            lines.append("  </feature>")
        return "\n".join([*lines, "</target>", ""])

    def with_values(self, line: str, values: Mapping[str, int]) -> str:
        """`line` with registers (`$rip`, `$pc`, `$sp`) as the numbers that `values` has."""
        names = {register.shown: register.name for register in self.registers} | {"pc": "rip", "sp": "rsp"}

        def value(match: re.Match[str]) -> str:
            name = names.get(match[1], "")
            return hex(values[name]) if name in values else match[0]

        return _VARIABLE.sub(value, line)

    def encoded(self, values: Mapping[str, int], register: Register | None = None) -> bytes:
        """The answer to `p` for one register, or to `g` for all: hexadecimal, `x` for what `values` lacks."""
        return b"".join(
            (values[each.name] % (1 << 8 * each.size)).to_bytes(each.size, "little").hex().encode()
            if each.name in values
            else b"xx" * each.size
            for each in (self.registers if register is None else (register,))
        )

    def decoded(self, data: bytes) -> dict[str, int]:
        """What `G` sets: the registers of which `data` has all digits; raises `FormatError` for what is no such."""
        if len(data) != 2 * self.size or data.strip(b"0123456789abcdefABCDEFx"):
            raise FormatError(f"expected {2 * self.size} hexadecimal digits of all registers, found {len(data)}")
        found = {}
        for register in self.registers:
            digits = data[2 * register.offset : 2 * (register.offset + register.size)]
            if b"x" not in digits:
                found[register.name] = int.from_bytes(bytes.fromhex(digits.decode("ascii")), "little")
        return found


_EFLAGS = (
    "CF", "", "PF", "", "AF", "", "ZF", "SF", "TF", "IF", "DF", "OF", "", "", "NT", "", "RF", "VM", "AC", "VIF", "VIP",
    "ID",
)  # fmt: skip
_MXCSR = ("IE", "DE", "ZE", "OE", "UE", "PE", "DAZ", "IM", "DM", "ZM", "OM", "UM", "PM", "", "", "FZ")


def _flags(name: str, bits: tuple[str, ...]) -> str:
    fields = "".join(
        f'\n      <field name="{bit}" start="{place}" end="{place}"/>' for place, bit in enumerate(bits) if bit
    )
    return f'    <flags id="{name}" size="4">{fields}\n    </flags>'
