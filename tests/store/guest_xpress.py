"""minint's own Xpress, built for this machine: another compressor, another decompressor, and what MemProcFS loads."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "guest" / "kernel" / "rtl" / "xpress.c"
# What the kernel's nt.h gives this file; NT_H keeps nt.h itself out.
PRELUDE = """
typedef unsigned char UCHAR, BOOLEAN;
typedef unsigned short USHORT;
typedef unsigned int ULONG;
#define NULL ((void *)0)
#define TRUE 1
#define FALSE 0
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define RTL_XPRESS_TABLE 2048
void *memset(void *, int, __SIZE_TYPE__);
"""
# The function that MemProcFS on Linux looks for in libMSCompression.so (its vmm/oscompatibility.c).
LIBRARY = """
BOOLEAN RtlDecompressXpress(const UCHAR *, ULONG, UCHAR *, ULONG);
int xpress_decompress(const UCHAR *from, __SIZE_TYPE__ length, UCHAR *to, __SIZE_TYPE__ *size) {
    return RtlDecompressXpress(from, (ULONG)length, to, (ULONG)*size) ? 0 : -1;
}
"""


def build_library(folder: Path) -> Path:
    """`libMSCompression.so` in `folder`; skips where there is no clang."""
    if shutil.which("clang") is None:
        pytest.skip("clang is not installed, which minint is built with")
    prelude, more, made = folder / "prelude.h", folder / "library.c", folder / "libMSCompression.so"
    prelude.write_text(PRELUDE)
    more.write_text(LIBRARY)
    command = ["clang", "-shared", "-fPIC", "-O1", "-DNT_H", "-include", str(prelude), str(SOURCE), str(more)]
    subprocess.run([*command, "-o", str(made)], check=True, capture_output=True)
    return made


class GuestXpress:
    """minint's `RtlCompressXpress` and `RtlDecompressXpress`."""

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))

    def compress(self, data: bytes, room: int = 0x4000) -> bytes | None:
        """`data` compressed, or None where that takes more than `room` bytes."""
        out, table = ctypes.create_string_buffer(room), ctypes.create_string_buffer(2 * 2048)
        size = self._library.RtlCompressXpress(data, len(data), out, room, table)
        return out.raw[:size] if size else None

    def decompress(self, data: bytes, size: int) -> bytes | None:
        """The `size` bytes that `data` holds, or None."""
        out = ctypes.create_string_buffer(size)
        return out.raw if self._library.RtlDecompressXpress(data, len(data), out, size) else None
