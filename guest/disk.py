#!/usr/bin/env python3
"""Makes minint's disk, without mounting anything and without root; reads files back out of it.

    guest/disk.py --built build/minint/19041 --output minint.qcow2 [--gpt] [--pagefile pagefile.sys=16] [--size 256]
    guest/disk.py --read '\\Users\\minint\\Documents\\notes-1.txt' minint.qcow2 > notes.txt

The disk is a qcow2 with one partition at 1 MB, an NTFS volume of mkntfs:

    \\Windows\\System32\\ntoskrnl.exe, ntdll.dll, smss.exe ...   copied in by ntfscp
    \\pagefile.sys                                             in fragments of 64 clusters, on purpose
    \\Users\\minint\\Documents, \\Windows\\Temp                  made by minint's own NTFS code, built for this machine

A made disk is kept as a template beside what it was made of, so that the second one is a copy.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import uuid
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
IO = HERE / "kernel" / "io"
SECTOR = 512
START = 1 << 20  # of the partition
FRAGMENT = 64  # clusters of the paging file side by side
FOLDERS = (
    "\\Windows",
    "\\Windows\\System32",
    "\\Windows\\System32\\drivers",
    "\\Windows\\SysWOW64",
    "\\Windows\\Temp",
    "\\Users",
    "\\Users\\minint",
    "\\Users\\minint\\Documents",
)
BASIC_DATA = uuid.UUID("EBD0A0A2-B9E5-4433-87C0-68B6B72699C7")


class DiskError(Exception):
    """A tool failed, or the disk holds no such volume or file; the message says which."""


def run(*words: str | Path, given: str | None = None) -> bytes:
    """Runs a tool and returns its output; raises DiskError with what it said when it fails."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    command = [shutil.which(str(words[0]), path=path) or str(words[0]), *map(str, words[1:])]
    try:
        done = subprocess.run(command, input=given.encode() if given else None, capture_output=True, check=False)
    except OSError as error:
        raise DiskError(f"{words[0]}: {error.strerror}") from error
    if done.returncode:
        said = (done.stderr or done.stdout).decode("utf-8", "replace").strip()
        raise DiskError(f"{' '.join(map(str, words))}: {said}")
    return done.stdout


def ntfs_tool(folder: Path) -> Path:
    """The host build of the kernel's NTFS code, made when one of its sources is newer."""
    binary = folder / "host_ntfs"
    sources = [IO / "host_test.c", *sorted(IO.glob("ntfs_*.c"))]
    newest = max(path.stat().st_mtime_ns for path in [*sources, *IO.glob("ntfs*.h")])
    if not binary.exists() or binary.stat().st_mtime_ns < newest:
        folder.mkdir(parents=True, exist_ok=True)
        fresh = folder / f"host_ntfs.{os.getpid()}"
        run("clang", "-O2", "-o", fresh, *sources)
        fresh.replace(binary)
    return binary


def make_volume(image: Path, size: int, files: dict[str, Path], pagefiles: dict[str, int], tool: Path) -> None:
    """Makes an NTFS volume of `size` bytes: folders, `files` by their path, paging files by their size in bytes."""
    with image.open("wb") as file:
        file.truncate(size)
    geometry = ["-p", str(START // SECTOR), "-H", "16", "-S", "63", "-s", str(SECTOR), "-c", "4096", "-L", "minint"]
    run("mkntfs", "-F", "-Q", "-q", *geometry, image)
    commands = [f"mkdir {folder}" for folder in FOLDERS]
    for path, length in pagefiles.items():
        commands += [f"fragment {FRAGMENT}", f"create {path}", f"size {path}|{length}", f"valid {path}", "fragment 0"]
    answers = run(tool, image, given="\n".join(commands) + "\n").decode().splitlines()
    for command, answer in zip(commands, answers, strict=True):
        if answer != "ok":
            raise DiskError(f"{command}: {answer}")
    for path, source in files.items():
        run("ntfscp", "-f", "-q", image, source, path.replace("\\", "/"))


def mbr(first: int, count: int, kind: int) -> bytes:
    """A master boot record with one partition."""
    entry = struct.pack("<B3sB3sII", 0x80 if kind == 7 else 0, b"\0\2\0", kind, b"\xfe\xff\xff", first, count)
    return bytes(440) + b"mini" + bytes(2) + entry + bytes(48) + b"\x55\xaa"


def gpt(sectors: int, count: int) -> tuple[bytes, bytes]:
    """The first megabyte and the last 33 sectors of a disk of `sectors` with one GPT partition of `count` sectors."""
    name = "minint".encode("utf-16-le").ljust(72, b"\0")
    first = START // SECTOR
    unique = uuid.UUID("6d696e69-6e74-4000-8000-000000000001").bytes_le
    entry = BASIC_DATA.bytes_le + unique + struct.pack("<QQQ", first, first + count - 1, 0) + name
    table = entry.ljust(128 * 128, b"\0")

    def header(here: int, other: int, entries: int) -> bytes:
        disk = uuid.UUID("6d696e69-6e74-4000-8000-000000000000").bytes_le
        places = struct.pack("<QQQQ", here, other, 34, sectors - 34)
        rest = struct.pack("<QIII", entries, 128, 128, zlib.crc32(table))
        body = b"EFI PART" + struct.pack("<III", 0x10000, 92, 0) + bytes(4) + places + disk + rest
        return body[:16] + struct.pack("<I", zlib.crc32(body)) + body[20:]

    head = mbr(1, sectors - 1, 0xEE) + header(1, sectors - 1, 2).ljust(SECTOR, b"\0") + table
    tail = table + header(sectors - 1, 1, sectors - 33).ljust(SECTOR, b"\0")
    return head.ljust(START, b"\0"), tail


def built_files(built: Path) -> dict[str, Path]:
    """What a build puts on the volume, by its path there."""
    system32 = "\\Windows\\System32\\"
    found = {system32 + "ntoskrnl.exe": built / "ntoskrnl.exe"}
    programs = sorted((built / "system32").iterdir()) if (built / "system32").is_dir() else []
    found |= {system32 + path.name: path for path in programs if path.suffix in (".exe", ".dll")}
    narrow = sorted(path for path in (built / "syswow64").glob("*") if path.suffix in (".exe", ".dll"))
    found |= {f"\\Windows\\SysWOW64\\{path.name}": path for path in narrow}
    drivers = sorted((built / "system32" / "drivers").glob("*.sys"))
    found |= {f"{system32}drivers\\{path.name}": path for path in drivers}
    missing = [str(path) for path in found.values() if not path.is_file()]
    if missing:
        raise DiskError(f"{', '.join(missing)}: not there; run guest/build.py")
    return found


def make_disk(
    output: Path,
    *,
    built: Path,
    files: dict[str, Path] | None = None,
    pagefiles: dict[str, int] | None = None,
    megabytes: int = 256,
    partitions: str = "mbr",
    template: bool = True,
) -> Path:
    """Makes the qcow2 disk `output` and returns its path.

    Args:
        output: the qcow2 to write.
        built: the output folder of guest/build.py.
        files: further files, by their path on the volume (whose folder must be one of FOLDERS).
        pagefiles: sizes in bytes by path; `\\pagefile.sys` of 16 MB when None.
        megabytes: the volume's size.
        partitions: `mbr` or `gpt`.
        template: keep a copy in `built` and start from it next time, as long as nothing that goes in has changed.

    Raises:
        DiskError: a tool failed, or something is missing.
    """
    content = built_files(built) | (files or {})
    pagefiles = {"\\pagefile.sys": 16 << 20} if pagefiles is None else pagefiles
    tool = ntfs_tool(built / "host")
    inputs = [tool, Path(__file__), *content.values()]
    stamps = [(str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in inputs]
    said = repr((sorted(content), stamps, sorted(pagefiles.items()), megabytes, partitions))
    kept = built / "host" / f"disk-{hashlib.sha256(said.encode()).hexdigest()[:16]}.qcow2"
    if not (template and kept.exists()):
        with tempfile.TemporaryDirectory(prefix="disk-", dir=built / "host") as folder:
            made = Path(folder) / "disk.qcow2"
            write_disk(
                made,
                folder=Path(folder),
                size=megabytes << 20,
                content=content,
                pagefiles=pagefiles,
                tool=tool,
                partitions=partitions,
            )
            if template:
                for old in kept.parent.glob("disk-*.qcow2"):
                    old.unlink(missing_ok=True)
            made.replace(kept if template else output)
    if template:
        shutil.copyfile(kept, output)
    return output


def write_disk(
    made: Path,
    *,
    folder: Path,
    size: int,
    content: dict[str, Path],
    pagefiles: dict[str, int],
    tool: Path,
    partitions: str,
) -> None:
    """Writes the volume and what is around it, and puts them together as a qcow2."""
    volume, head, tail = folder / "volume", folder / "head", folder / "tail"
    make_volume(volume, size, content, pagefiles, tool)
    count = size // SECTOR
    front, back = mbr(START // SECTOR, count, 7).ljust(START, b"\0"), b""
    if partitions == "gpt":
        front, back = gpt(START // SECTOR + count + 33, count)
    head.write_bytes(front)
    tail.write_bytes(back)
    parts = [head, volume, *([tail] if back else [])]
    run("qemu-img", "convert", "-q", "-f", "raw", "-O", "qcow2", *parts, made)


# Reading back


def partition_of(first: bytes) -> tuple[int, int]:
    """Offset and length in bytes of the NTFS partition, from a disk's first 34 sectors; 0, 0 for a bare volume."""
    if first[3:11] == b"NTFS    ":
        return 0, 0
    for at in range(446, 510, 16):
        kind, begin, count = first[at + 4], *struct.unpack_from("<II", first, at + 8)
        if kind == 7:
            return begin * SECTOR, count * SECTOR
        if kind == 0xEE and first[SECTOR : SECTOR + 8] == b"EFI PART":
            for entry in range(2 * SECTOR, len(first) - 127, 128):
                if first[entry : entry + 16] == BASIC_DATA.bytes_le:
                    begin, end = struct.unpack_from("<QQ", first, entry + 32)
                    return begin * SECTOR, (end - begin + 1) * SECTOR
    raise DiskError("the disk has no NTFS partition")


@contextmanager
def open_volume(disk: Path) -> Iterator[Path]:
    """The disk's NTFS volume as a plain temporary file; of a running guest's disk, what QEMU has written so far."""
    with tempfile.TemporaryDirectory(prefix="volume-") as folder:
        raw = Path(folder) / "first"
        run("qemu-img", "dd", "-U", "-O", "raw", f"bs={SECTOR}", "count=34", f"if={disk}", f"of={raw}")
        offset, length = partition_of(raw.read_bytes())
        image = Path(folder) / "volume"
        kind = "qcow2" if disk.open("rb").read(4) == b"QFI\xfb" else "raw"
        whole = f"file.driver={kind},file.file.filename={disk}"
        part = f"driver=raw,offset={offset}" + (f",size={length}" if length else "")
        run("qemu-img", "convert", "-U", "--image-opts", f"{part},{whole}", "-O", "raw", image)
        yield image


def read_file(disk: Path, path: str) -> bytes:
    """The bytes of a file of the disk's volume; `path` like `\\Windows\\System32\\ntdll.dll`, in its own case.

    Raises:
        DiskError: no such disk, volume or file.
    """
    with open_volume(disk) as image:
        return run("ntfscat", "-f", image, path.replace("\\", "/"))


def read_files(disk: Path, paths: Iterable[str]) -> dict[str, bytes]:
    """As `read_file`, for several files of one moment."""
    with open_volume(disk) as image:
        return {path: run("ntfscat", "-f", image, path.replace("\\", "/")) for path in paths}


def list_folder(disk: Path, path: str) -> list[str]:
    """The names in a folder, sorted, without NTFS's own files."""
    with open_volume(disk) as image:
        names = run("ntfsls", "-f", "-p", path.replace("\\", "/") or "/", image).decode().splitlines()
    return sorted(name for name in names if name not in (".", "..") and not name.startswith("$"))


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description="Makes minint's disk, or reads a file back out of it.")
    parser.add_argument("disk", nargs="?", type=Path, help="with --read or --list: the disk")
    parser.add_argument("--read", metavar="PATH", help="write this file of the volume to standard output")
    parser.add_argument("--list", metavar="PATH", help="list this folder of the volume")
    parser.add_argument("--built", type=Path, help="the output folder of guest/build.py")
    parser.add_argument("--output", type=Path, help="the qcow2 to write")
    parser.add_argument("--size", type=int, default=256, metavar="MB", help="the volume's size (%(default)s)")
    parser.add_argument("--pagefile", action="append", metavar="NAME=MB", help="a paging file (pagefile.sys=16)")
    parser.add_argument("--file", action="append", default=[], metavar="PATH=SOURCE", help="a further file")
    parser.add_argument("--gpt", action="store_true", help="a GPT instead of an MBR")
    options = parser.parse_args()
    try:
        if options.read or options.list:
            if options.disk is None:
                parser.error("--read and --list need a disk")
            if options.read:
                sys.stdout.buffer.write(read_file(options.disk, options.read))
            else:
                print("\n".join(list_folder(options.disk, options.list)))
            return 0
        if options.built is None or options.output is None:
            parser.error("--built and --output are needed")
        pagefiles = None
        if options.pagefile is not None:
            words = [word.partition("=") for word in options.pagefile if word]
            pagefiles = {"\\" + name.lstrip("\\"): int(size or 16) << 20 for name, _, size in words}
        files = {name: Path(source) for name, _, source in (word.partition("=") for word in options.file)}
        make_disk(
            options.output,
            built=options.built,
            files=files,
            pagefiles=pagefiles,
            megabytes=options.size,
            partitions="gpt" if options.gpt else "mbr",
        )
    except (DiskError, OSError) as error:
        print(f"disk: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
