"""What llvm-pdbutil says of a PDB, read from its `dump` output: a second opinion, written by others."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

_RECORD = re.compile(r"^\s*0x([0-9A-F]+) \| (LF_\w+) \[size = \d+\](?: `(.*)`)?$")
_MEMBER = re.compile(r"- LF_MEMBER \[name = `(.*)`, Type = 0x([0-9A-F]+)(?: \(.*\))?, offset = (\d+), attrs")
_ENUMERATE = re.compile(r"- LF_ENUMERATE \[(.*) = (-?\d+)\]")
_INDEX = re.compile(r"- LF_INDEX \[type index = 0x([0-9A-F]+)")


@dataclass
class Leaf:
    """A type record: kind, name, the text of its detail lines."""

    kind: str
    name: str
    detail: str = ""
    lines: list[str] = field(default_factory=list)

    def hexadecimal(self, label: str) -> int:
        match = re.search(rf"{label}:? ?=? ?0x([0-9A-Fa-f]+)", self.detail)
        return int(match[1], 16) if match else 0

    def decimal(self, label: str) -> int:
        match = re.search(rf"{label}:? ?=? ?(\d+)", self.detail)
        assert match, (label, self.detail)
        return int(match[1])

    @property
    def forward(self) -> bool:
        return "forward ref" in self.detail


def dump(pdb: Path, *what: str) -> list[str]:
    done = subprocess.run(["llvm-pdbutil", "dump", *what, str(pdb)], capture_output=True, check=True)
    return done.stdout.decode("utf-8", "replace").splitlines()  # section names are printed with what follows them


def types(pdb: Path) -> dict[int, Leaf]:
    """Every record of the type stream, by type index."""
    found: dict[int, Leaf] = {}
    current: Leaf | None = None
    for line in dump(pdb, "--types"):
        match = _RECORD.match(line)
        if match:
            current = found[int(match[1], 16)] = Leaf(match[2], match[3] or "")
        elif current is not None:
            current.lines.append(line.strip())
            current.detail += line.strip() + "\n"
    return found


def members(leaves: dict[int, Leaf], index: int) -> list[tuple[str, int, int]]:
    """Name, offset and type index of each data member of a field list."""
    found = []
    for line in leaves[index].lines:
        if match := _MEMBER.match(line):
            found.append((match[1], int(match[3]), int(match[2], 16)))
        elif match := _INDEX.match(line):
            found += members(leaves, int(match[1], 16))
    return found


def enumerators(leaves: dict[int, Leaf], index: int) -> list[tuple[str, int]]:
    return [(match[1], int(match[2])) for line in leaves[index].lines if (match := _ENUMERATE.match(line))]


def sections(pdb: Path) -> list[int]:
    """RVA of each section."""
    return [int(line.split()[0], 16) for line in dump(pdb, "--section-headers") if line.endswith("virtual address")]


def symbols(pdb: Path) -> set[tuple[str, str, int]]:
    """(Kind, name, RVA) of every public, variable and function."""
    starts, found = sections(pdb), set()
    name = kind = ""
    for line in dump(pdb, "--publics", "--globals", "--symbols"):
        if match := re.match(r"^\s*\d+ \| (S_\w+) \[size = \d+\] `(.*)`$", line):
            kind, name = match[1], match[2]
        elif re.match(r"^\s*\d+ \| (S_\w+)", line):
            kind = ""
        elif kind in _ADDRESSED and (match := re.search(r"addr = (\d+):(\d+)", line)):
            section, offset = int(match[1]), int(match[2])
            if 0 < section <= len(starts):
                found.add((kind, name, starts[section - 1] + offset))
            kind = ""
    return found


_ADDRESSED = ("S_PUB32", "S_GDATA32", "S_LDATA32", "S_GPROC32", "S_LPROC32")
