"""Triage dumps made by hand, from the structures of the WDK's ntiodump.h; nothing of the reader's is used."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass
class MiniDump:
    """What the dump shall have. `blocks` are bytes by virtual address; `copies` those of KPRCB, EPROCESS, ETHREAD."""

    blocks: Sequence[tuple[int, bytes]] = ()
    stack: tuple[int, bytes] = (0, b"")
    drivers: Sequence[tuple[str, int, int]] = ()
    copies: Mapping[str, bytes] = field(default_factory=dict)
    registers: Mapping[str, int] = field(default_factory=dict)
    bugcheck: tuple[int, ...] = (0xD1, 1, 2, 3, 4)
    loaded_modules: int = 0
    active_processes: int = 0
    dtb: int = 0x1AD000
    build: int = 19041
    entry: int = 0xA8
    options: int = 0

    def header64(self) -> bytearray:
        data = bytearray(b"PAGEDU64".ljust(0x2000, b"\0"))
        struct.pack_into("<II", data, 8, 15, self.build)
        struct.pack_into("<4QII", data, 0x10, self.dtb, 0, self.loaded_modules, self.active_processes, 0x8664, 2)
        struct.pack_into("<I4x4Q", data, 0x38, *self.bugcheck)
        context = 0x348
        names = ["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{n}" for n in range(8, 16)), "rip"]
        struct.pack_into("<17Q", data, context + 0x78, *(self.registers.get(name, 0) for name in names))
        struct.pack_into("<I", data, 0xF98, 4)
        return data

    def header32(self) -> bytearray:
        data = bytearray(b"PAGEDUMP".ljust(0x1000, b"\0"))
        struct.pack_into("<II", data, 8, 15, self.build)
        struct.pack_into("<4III", data, 0x10, self.dtb, 0, self.loaded_modules, self.active_processes, 0x14C, 1)
        struct.pack_into("<5I", data, 0x28, *self.bugcheck)
        data[0x5C] = 1  # PaeEnabled
        struct.pack_into("<I", data, 0x320 + 0xB8, self.registers.get("rip", 0))  # CONTEXT.Eip
        struct.pack_into("<I", data, 0x320 + 0xC4, self.registers.get("rsp", 0))  # CONTEXT.Esp
        struct.pack_into("<I", data, 0xF88, 4)
        return data

    def pack(self, *, wide: bool = True) -> bytes:
        header = self.header64() if wide else self.header32()
        size, pointer = (0x80, "Q") if wide else (0x68, "I")
        parts: list[bytes] = []
        offset = len(header) + size

        def put(data: bytes) -> int:
            nonlocal offset
            parts.append(data + bytes(-len(data) % 8))
            offset += len(parts[-1])
            return offset - len(parts[-1])

        copies = [put(self.copies[name]) if name in self.copies else 0 for name in ("prcb", "process", "thread")]
        stack = put(self.stack[1])
        table = [(address, put(data), len(data)) for address, data in self.blocks]
        blocks = put(b"".join(struct.pack("<QII", *block) for block in table))
        entry = self.entry if wide else 0x4C
        at, strings, entries = offset + entry * len(self.drivers), b"", b""
        for name, base, length in self.drivers:
            if wide:
                known = struct.pack("<I52xQ8xI", at + len(strings), base, length)
            else:
                known = struct.pack("<I24xI4xI", at + len(strings), base, length)
            known = bytearray(known.ljust(entry, b"\0"))
            stamp = {0x90: 0x88, 0xA8: 0xA4, 0x4C: 0x48}[entry]
            known[stamp : stamp + 4] = struct.pack("<I", 0x5F000000 + len(strings))
            entries += known
            strings += struct.pack("<I", len(name)) + name.encode("utf-16-le") + b"\0\0"
        listed = put(entries + strings)
        head = struct.pack("<18I", 0, offset, 0, 0, 0, 0, 0, *copies, stack, len(self.stack[1]), listed,
                           len(self.drivers), at, len(strings), 0, self.options)  # fmt: skip
        if wide:
            head += struct.pack("<Q16xQIIIIII", self.stack[0], 0, 0, 0, 0, 0, blocks, len(table))
        else:
            head += struct.pack("<IIIIIIII", self.stack[0], 0, 0, 0, 0, 0, blocks, len(table))
        assert len(head) == size
        assert pointer
        return bytes(header) + head + b"".join(parts)
