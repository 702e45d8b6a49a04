#!/usr/bin/env python3
"""Builds minint: the multiboot loader, the kernel, its drivers, the user programs, each with its PDB.

    guest/build.py [--layout 19041] [--output build/minint/19041]

Needs clang, lld and llvm (Debian's packages). Rebuilds only what changed; prints what it runs with --verbose; builds
into one folder take turns. The folder holds `loader.elf`, `ntoskrnl.exe`, `system32/*.exe|dll`,
`system32/drivers/*.sys`, the 32-bit `syswow64/*.exe|dll` and `symbols/*.pdb`.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
# General registers only: no SSE state is kept across a switch, and nested KVM cannot emulate it.
COMMON = [
    "--target=x86_64-pc-windows-msvc", "-ffreestanding", "-fno-builtin", "-g", "-gcodeview", "-O1",
    "-mno-sse", "-mno-mmx", "-mno-80387", "-msoft-float", "-mno-implicit-float",
    "-fno-stack-protector", "-funwind-tables", "-mno-stack-arg-probe", "-fms-extensions", "-fno-strict-aliasing",
    "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter", "-Wno-missing-field-initializers", "-Wno-microsoft",
    "-Wno-multichar",
]  # fmt: skip
COMMON32 = ["--target=i686-pc-windows-msvc", *COMMON[1:], "-fno-omit-frame-pointer"]
LOADER = [
    "--target=i686-elf", "-m32", "-ffreestanding", "-fno-builtin", "-nostdlib", "-fno-pic", "-mno-sse", "-O1",
    "-Wall", "-Wextra", "-Werror",
]  # fmt: skip
USER_PROGRAMS = (
    "smss", "csrss", "services", "svchost", "notepad", "states", "autochk", "ledger", "spawner", "brief", "packets",
    "ticker",
)  # fmt: skip


class BuildError(Exception):
    """A tool failed; the message is its output."""


@dataclass
class Build:
    """One build of one layout into one folder."""

    layout: str
    output: Path
    verbose: bool = False
    commands: int = 0
    pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(os.cpu_count() or 2))

    def run(self, *command: str | Path) -> None:
        """Runs a tool; raises BuildError with its output when it fails."""
        words = [str(word) for word in command]
        if self.verbose:
            print(" ".join(words), file=sys.stderr)
        self.commands += 1
        done = subprocess.run(words, cwd=HERE, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BuildError(f"{' '.join(words)}\n{done.stdout}{done.stderr}")

    def object_of(self, source: Path, kind: str, flags: list[str]) -> Path:
        """Compiles one source unless its object is newer than all it includes."""
        target = self.output / "objects" / kind / (str(source.relative_to(HERE)).replace("/", "-") + ".o")
        dependencies = target.with_suffix(".d")
        if source.suffix == ".S":  # clang writes DWARF for assembler, which lld-link would carry along
            flags = [flag for flag in flags if flag not in ("-g", "-gcodeview")]
        target.parent.mkdir(parents=True, exist_ok=True)
        if not self.stale(target, dependencies, " ".join(flags)):
            return target
        self.run("clang", *flags, "-MD", "-MF", dependencies, "-c", source.relative_to(HERE), "-o", target)
        target.with_suffix(".flags").write_text(" ".join(flags))
        return target

    def stale(self, target: Path, dependencies: Path, flags: str) -> bool:
        """True when a target is missing, was made with other flags or is older than a file it depends on."""
        try:
            made = target.stat().st_mtime_ns
            if target.with_suffix(".flags").read_text() != flags:
                return True
            names = re.split(r"(?<!\\)\s+", dependencies.read_text().replace("\\\n", " ").partition(":")[2].strip())
            return any((HERE / name.replace("\\ ", " ")).stat().st_mtime_ns > made for name in names)
        except OSError:
            return True

    def objects(self, sources: list[Path], kind: str, flags: list[str]) -> list[Path]:
        """Compiles sources side by side."""
        return list(self.pool.map(lambda source: self.object_of(source, kind, flags), sources))

    def link(self, target: Path, objects: list[Path], *words: str | Path) -> None:
        """Links unless the target is newer than its objects."""
        flags = " ".join(map(str, words))
        stamp = target.with_name(target.name + ".link")
        if target.exists() and stamp.exists() and stamp.read_text() == flags:
            made = target.stat().st_mtime_ns
            if all(path.stat().st_mtime_ns < made for path in objects):
                return
        target.parent.mkdir(parents=True, exist_ok=True)
        self.run(*words, *objects)
        stamp.write_text(flags)

    def loader(self) -> None:
        """loader.elf"""
        made = self.objects(sources(HERE / "loader"), "loader", LOADER)
        target = self.output / "loader.elf"
        self.link(target, made, "ld.lld", "-m", "elf_i386", "-T", HERE / "loader" / "loader.ld", "-o", target)

    def kernel(self) -> None:
        """ntoskrnl.exe and ntkrnlmp.pdb"""
        header = f'-DNT_LAYOUT_HEADER="../layouts/nt_{self.layout}.h"'
        flags = [*COMMON, header, "-Ikernel", "-DMININT_KERNEL"]
        made = self.objects(sources(HERE / "kernel"), "kernel", flags)
        target = self.output / "ntoskrnl.exe"
        pdb = self.output / "symbols" / "ntkrnlmp.pdb"
        pdb.parent.mkdir(parents=True, exist_ok=True)
        executable = [f"/section:{name},ER" for name in ("KVASCODE", "PAGE", "POOLCODE", "INITKDBG")]
        self.link(
            target, made, *linker(target, pdb, "KiSystemStartup", 0x140000000), "/driver", "/subsystem:native",
            *executable, *exports(HERE / "kernel" / "exports.txt"),
        )  # fmt: skip

    def drivers(self) -> None:
        """The drivers, each a folder of `driver`; they import from ntoskrnl.exe alone."""
        header = f'-DNT_LAYOUT_HEADER="../layouts/nt_{self.layout}.h"'
        flags = [*COMMON, header, "-Ikernel", "-DMININT_KERNEL"]
        library = self.output / "ntoskrnl.lib"
        for folder in sorted(path for path in (HERE / "driver").iterdir() if path.is_dir()):
            made = self.objects(sources(folder), "driver", flags)
            target = self.output / "system32" / "drivers" / f"{folder.name}.sys"
            pdb = self.output / "symbols" / f"{folder.name}.pdb"
            self.link(
                target, [*made, library], *linker(target, pdb, "DriverEntry", 0x1C0000000), "/driver",
                "/subsystem:native", f"/implib:{self.output / 'objects' / (folder.name + '.lib')}",
                *exports(folder / "exports.txt"),
            )  # fmt: skip

    def user(self) -> None:
        """ntdll.dll and the programs"""
        folder = self.output / "system32"
        folder.mkdir(parents=True, exist_ok=True)
        header = f'-DNT_LAYOUT_HEADER="../layouts/nt_{self.layout}.h"'
        flags = [*COMMON, header, "-Iuser", "-Ikernel"]
        made = self.objects(sources(HERE / "user" / "ntdll"), "ntdll", flags)
        target, library = folder / "ntdll.dll", self.output / "objects" / "ntdll.lib"
        pdb = self.output / "symbols" / "ntdll.pdb"
        self.link(
            target, made, *linker(target, pdb, "", 0x180000000), "/dll", "/noentry", f"/implib:{library}",
            "/subsystem:native", *exports(HERE / "user" / "ntdll" / "exports.txt"),
        )  # fmt: skip
        for name in USER_PROGRAMS:
            made = self.objects([HERE / "user" / f"{name}.c"], "user", flags)
            target, pdb = folder / f"{name}.exe", self.output / "symbols" / f"{name}.pdb"
            self.link(
                target, [*made, library], *linker(target, pdb, "NtProcessStartup", 0x140000000), "/subsystem:native"
            )

    def wow64(self) -> None:
        """wow64.dll and wow64cpu.dll, which import from each other through the 64-bit loader"""
        header = f'-DNT_LAYOUT_HEADER="../layouts/nt_{self.layout}.h"'
        flags = [*COMMON, header, "-Iuser", "-Ikernel"]
        libraries = [self.output / "objects" / "ntdll.lib"]
        # 32-bit code jumps into wow64cpu.dll
        for name, base, words in (("wow64", 0x180000000, []), ("wow64cpu", 0x6B000000, ["/highentropyva:no"])):
            folder = HERE / "user" / name
            made = self.objects(sources(folder), "wow64", flags)
            target, library = self.output / "system32" / f"{name}.dll", self.output / "objects" / f"{name}.lib"
            pdb = self.output / "symbols" / f"{name}.pdb"
            self.link(
                target, [*made, *libraries], *linker(target, pdb, "", base), *words, "/dll", "/noentry",
                f"/implib:{library}", "/subsystem:native", *exports(folder / "exports.txt"),
            )  # fmt: skip
            libraries.append(library)

    def user32(self) -> None:
        """The 32-bit ntdll.dll, whose PDB is wntdll.pdb as in Windows, and editor32.exe"""
        folder = self.output / "syswow64"
        made = self.objects(sources(HERE / "user" / "ntdll32"), "user32", COMMON32)
        target, library = folder / "ntdll.dll", self.output / "objects" / "ntdll32.lib"
        common = ["/subsystem:native", "/safeseh:no"]
        self.link(
            target, made, *linker(target, self.output / "symbols" / "wntdll.pdb", "", 0x77000000, "x86"), *common,
            "/dll", "/noentry", f"/implib:{library}", *exports(HERE / "user" / "ntdll32" / "exports.txt"),
        )  # fmt: skip
        source = HERE / "user" / "editor32"
        made = [
            *self.objects([source / "editor.c"], "user32", COMMON32),
            *self.objects([source / "paragraph.c"], "user32", [*COMMON32, "-fomit-frame-pointer"]),
        ]
        target, pdb = folder / "editor32.exe", self.output / "symbols" / "editor32.pdb"
        self.link(
            target, [*made, library], *linker(target, pdb, "NtProcessStartup", 0x400000, "x86"), *common,
        )  # fmt: skip

    def all(self) -> None:
        """Everything."""
        with (self.output / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self.loader()
            self.kernel()
            self.drivers()
            self.user()
            self.wow64()
            self.user32()


def sources(folder: Path) -> list[Path]:
    """C and assembler files below a folder, but for host test harnesses (`test` folders, `host_*`)."""
    found = [path for path in folder.rglob("*") if path.suffix in (".c", ".S")]
    return sorted(
        path for path in found if "test" not in path.relative_to(folder).parts and not path.name.startswith("host_")
    )


def linker(target: Path, pdb: Path, entry: str, base: int, machine: str = "x64") -> list[str]:
    """What every PE image shares. /Brepro: the same sources give the same bytes and the same PDB identity."""
    words = f"lld-link /nologo /nodefaultlib /debug /Brepro /machine:{machine} /dynamicbase /base:{base:#x}".split()
    words += [f"/out:{target}", f"/pdb:{pdb}", f"/pdbaltpath:{pdb.name}", "/incremental:no", "/opt:noref", "/opt:noicf"]
    return [*words, f"/entry:{entry}"] if entry else words


def exports(path: Path) -> list[str]:
    """The exported names, one a line."""
    if not path.exists():
        return []
    lines = (line.partition("#")[0].strip() for line in path.read_text().splitlines())
    return [f"/export:{line}" for line in lines if line]


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description="Builds minint, the miniature NT guest.")
    parser.add_argument("--layout", default="19041", help="whose structures: a header of guest/layouts (default 19041)")
    parser.add_argument("--output", type=Path, help="folder (default build/minint/LAYOUT)")
    parser.add_argument("--verbose", action="store_true", help="print the commands")
    options = parser.parse_args()
    if not (HERE / "layouts" / f"nt_{options.layout}.h").exists():
        known = sorted(path.stem.removeprefix("nt_") for path in (HERE / "layouts").glob("nt_*.h"))
        print(f"build: no layout {options.layout!r}; there are {', '.join(known)}", file=sys.stderr)
        return 2
    output = (options.output or HERE.parent / "build" / "minint" / options.layout).resolve()
    output.mkdir(parents=True, exist_ok=True)
    build = Build(options.layout, output, options.verbose)
    try:
        build.all()
    except BuildError as error:
        print(f"build: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
