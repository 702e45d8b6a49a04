"""Programs for the unwinder's tests: compiled with clang and lld-link, mapped as Windows' loader maps them."""

from __future__ import annotations

import shutil
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from coldframe.errors import UnreadableMemoryError

TARGET = "--target=x86_64-pc-windows-msvc"
TARGET32 = "--target=i686-pc-windows-msvc"
PAGE = 4096
BASE = 0x140000000


class SparseMemory:
    """Bytes by page; a page that is not there cannot be read."""

    def __init__(self) -> None:
        self.pages: dict[int, bytearray] = {}

    def write(self, address: int, data: bytes) -> None:
        while data:
            page, offset = divmod(address, PAGE)
            part = data[: PAGE - offset]
            self.pages.setdefault(page, bytearray(PAGE))[offset : offset + len(part)] = part
            address, data = address + len(part), data[len(part) :]

    def read(self, address: int, size: int) -> bytes:
        out = b""
        while size:
            page, offset = divmod(address, PAGE)
            if page not in self.pages:
                raise UnreadableMemoryError(address, min(size, PAGE - offset), "the page is not in RAM")
            part = bytes(self.pages[page][offset : offset + size])
            out, address, size = out + part, address + len(part), size - len(part)
        return out


@dataclass
class Program:
    """A linked image: its file, the base it is mapped at, its bytes as mapped, its symbols."""

    path: Path
    base: int
    mapped: bytes
    symbols: dict[str, int]

    def memory(self) -> SparseMemory:
        memory = SparseMemory()
        memory.write(self.base, self.mapped)
        return memory

    def function_at(self, address: int) -> str:
        return max((rva, name) for name, rva in self.symbols.items() if rva <= address - self.base)[1]


def build(
    folder: Path,
    *,
    c: str = "",
    asm: str = "",
    flags: tuple[str, ...] = ("-O2",),
    entry: str = "entry",
    base: int = BASE,
    exports: tuple[str, ...] = (),
    target: str = TARGET,
    debug: bool = False,
) -> Program:
    """Compile and link; `base` is the image's preferred one. With `debug` there is a PDB beside it."""
    folder.mkdir(exist_ok=True)
    if shutil.which("clang") is None or shutil.which("lld-link") is None:
        pytest.skip("clang and lld-link are not installed: ./scripts/setup installs them")
    objects = []
    for name, text in (("c.c", c), ("a.s", asm)):
        if text:
            (folder / name).write_text(text)
            output = folder / f"{name}.obj"
            options = ("-ffreestanding", "-fno-builtin", "-funwind-tables", *flags) if name == "c.c" else ()
            subprocess.run(["clang", target, *options, "-c", folder / name, "-o", output], check=True)
            objects.append(output)
    path = folder / "program.exe"
    subprocess.run(
        ["lld-link", *objects, "/nodefaultlib", "/subsystem:native", f"/entry:{entry}", f"/base:{base:#x}", "/fixed",
         "/map", "/opt:noref", "/safeseh:no", f"/out:{path}", *(f"/export:{name}" for name in exports),
         *(["/debug"] if debug else [])],
        check=True,
    )  # fmt: skip
    return load(path, base)


def load(path: Path, base: int) -> Program:
    file = path.read_bytes()
    header = int.from_bytes(file[0x3C:0x40], "little")
    (count,) = struct.unpack_from("<H", file, header + 6)
    (optional,) = struct.unpack_from("<H", file, header + 20)
    (size,) = struct.unpack_from("<I", file, header + 24 + 56)
    mapped = bytearray(-(-size // PAGE) * PAGE)
    mapped[:0x400] = file[:0x400]
    for at in range(header + 24 + optional, header + 24 + optional + 40 * count, 40):
        _, rva, raw, where = struct.unpack_from("<IIII", file, at + 8)
        mapped[rva : rva + raw] = file[where : where + raw]
    return Program(path, base, bytes(mapped), _map_file(path.with_suffix(".map"), base))


def _map_file(path: Path, base: int) -> dict[str, int]:
    symbols = {}
    for line in path.read_text().splitlines():
        words = line.split()
        if len(words) >= 4 and ":" in words[0] and len(words[2]) == 16:
            symbols[words[1]] = int(words[2], 16) - base
    return symbols
