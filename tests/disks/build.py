"""Disks to read: NTFS volumes made by ntfs-3g's tools, in partitions, in images made by qemu-img."""

from __future__ import annotations

import os
import random
import shutil
import struct
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "guest"))
import disk as minint_disk

START = 1 << 20
SIZE = 24 << 20
_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def tool(*words: str | Path) -> bytes:
    """What a tool prints; raises with what it says when it fails."""
    command = [shutil.which(str(words[0]), path=_PATH) or str(words[0]), *map(str, words[1:])]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr.decode()}"
    return done.stdout


def contents() -> dict[str, bytes]:
    """Files of every kind: resident, of some clusters, with long runs of zeros, easy to compress."""
    known = random.Random(7)
    text = b"".join(bytes([index % 251]) * 90 + known.randbytes(30) for index in range(4000))
    return {
        "small.txt": b"resident: it fits into the file record",
        "plain.bin": known.randbytes(300_000),
        "text.bin": text,
        "hole.bin": b"head" + bytes(500_000) + b"tail",
    }


def volume(path: Path, *, sector: int = 512, compressed: bool = False, start: int = START) -> dict[str, bytes]:
    """An NTFS volume in a plain file; returns what its files hold, by name."""
    with path.open("wb") as file:
        file.truncate(SIZE)
    geometry = ["-p", str(start // sector), "-H", "16", "-S", "63", "-s", str(sector), "-c", "4096", "-L", "coldframe"]
    tool("mkntfs", "-F", "-Q", "-q", *(["-C"] if compressed else []), *geometry, path)
    held = contents()
    for name, data in held.items():
        source = path.with_name("source")
        source.write_bytes(data)
        tool("ntfscp", "-f", "-q", path, source, f"/{name}")
    return held


def partitioned(path: Path, of: Path, *, table: str = "mbr", sector: int = 512) -> Path:
    """The volume `of` as the one partition of a raw disk; `table` is mbr or gpt."""
    data = of.read_bytes()
    first, count = START // sector, len(data) // sector
    if table == "mbr":
        head, tail = minint_disk.mbr(first, count, 7).ljust(START, b"\0"), b""
    else:
        assert sector == 512 or table == "gpt"
        head, tail = gpt(first, count, sector)
    path.write_bytes(head + data + tail)
    return path


def gpt(first: int, count: int, sector: int) -> tuple[bytes, bytes]:
    """A GPT in sectors of `sector` bytes; guest/disk.py's, which knows 512, told anew for others."""
    if sector == 512:
        return minint_disk.gpt(first + count + 33, count)
    name = "big sectors".encode("utf-16-le").ljust(72, b"\0")
    entry = minint_disk.BASIC_DATA.bytes_le + bytes(range(16)) + struct.pack("<QQQ", first, first + count - 1, 0) + name
    header = b"EFI PART" + struct.pack("<IIII", 0x10000, 92, 0, 0) + struct.pack("<QQQQ", 1, 9, 6, first + count)
    header += bytes(16) + struct.pack("<QII", 2, 128, 128)
    protective = minint_disk.mbr(1, first + count, 0xEE)
    return (protective.ljust(sector, b"\0") + header.ljust(sector, b"\0") + entry).ljust(START, b"\0"), b""
