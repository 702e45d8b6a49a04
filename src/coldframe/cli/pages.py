"""`pte` and `read`: one address explained, and bytes."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Annotated

import typer

from coldframe.cli.absent import open_target
from coldframe.cli.options import Json, Pid, SymbolPaths, Target, number
from coldframe.cli.render import Address, Value, err, hex_dump, out, print_json, printable
from coldframe.errors import UsageError
from coldframe.memory import PAGE_SIZE

if TYPE_CHECKING:
    from coldframe.paging import AddressSpace, Page, Step
    from coldframe.windows import Guest

MOST_BYTES = 1 << 40
MOST_AT_ONCE = 1 << 30
_CHUNK = 1 << 24
_SYMBOL = re.compile(r"[A-Za-z_?@$][\w?@$]*")
_HEXADECIMAL = re.compile(r"[0-9A-Fa-f]+")


def register(app: typer.Typer) -> None:
    """Add this module's verbs to `app`."""
    app.command()(pte)
    app.command()(read)


def pte(
    target: Target,
    address: Annotated[str, typer.Argument(metavar="ADDRESS", help="An address, or a symbol such as nt!NtWriteFile.")],
    symbols: SymbolPaths,
    pid: Pid = None,
    as_json: Json = False,
) -> None:
    """Explain an address, entry by entry. As kd's !pte, then in words, with what would unlock the page.

    \b
    coldframe pte win10.qmp 0x7ff743655000 --pid 812
    coldframe pte memory.dmp nt!NtWriteFile --json
    """
    place = Place.parse(address)
    with open_target(target, symbols=symbols) as guest:
        space = _space(guest, pid)
        page = space.resolve(place.address(guest, pid))
        columns = [] if as_json else _columns(page, space)
    if as_json:
        print_json(page_facts(page, pid))
        return
    for line in columns:
        out.print(line, markup=False)
    for line in page_lines(page):
        out.print(line)


def read(
    target: Target,
    address: Annotated[str, typer.Argument(metavar="ADDRESS", help="An address, or a symbol such as nt!NtWriteFile.")],
    size: Annotated[str, typer.Argument(metavar="SIZE", help="How many bytes.")],
    symbols: SymbolPaths,
    pid: Pid = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write the bytes to FILE.")
    ] = None,
    padded: Annotated[bool, typer.Option("--padded", help="Zeros for pages that cannot be read, each named.")] = False,
    as_json: Json = False,
) -> None:
    """Read virtual memory: a hex dump, or the bytes if piped.

    \b
    coldframe read win10.qmp 0x7ff743655000 256 --pid 812
    coldframe read memory.dmp nt!NtWriteFile 4096 -o NtWriteFile.bin
    """
    place, length = Place.parse(address), number(size)
    if not 0 < length <= MOST_BYTES:
        raise UsageError(f"expected a size from 1 to {MOST_BYTES:#x} bytes, found {size}")
    with open_target(target, symbols=symbols) as guest:
        start = place.address(guest, pid)
        space = _space(guest, pid)
        if padded and output is not None:
            _copy(space, start, length, output)
            return
        if length > MOST_AT_ONCE:
            raise UsageError(f"{length:#x} bytes are too many to hold at once: write them with --padded -o FILE")
        data, holes = space.read_padded(start, length) if padded else (space.read(start, length), [])
        reasons = [space.resolve(hole).reason for hole, _ in holes]
        sources = _sources(space, start, length) if as_json else []
    for (hole, extent), reason in zip(holes, reasons, strict=True):
        err.print(f"{hole:#x}-{hole + extent:#x}: {printable(reason)}")
    if output is not None:
        output.write_bytes(data)
    elif as_json:
        print_json(
            {
                "address": Address(start),
                "size": length,
                "data": data.hex(),
                "sources": sources,
                "holes": [
                    {"address": Address(hole), "size": extent, "reason": reason}
                    for (hole, extent), reason in zip(holes, reasons, strict=True)
                ],
            }
        )
    elif sys.stdout.isatty():
        for line in hex_dump(data, start, holes):
            out.print(line, markup=False)
    else:
        sys.stdout.buffer.write(data)


def _sources(space: AddressSpace, start: int, length: int) -> list[Value]:
    """Where the pages of the span came from that are not in RAM."""
    found: list[Value] = []
    for at in range(start & ~(PAGE_SIZE - 1), start + length, PAGE_SIZE):
        source = space.resolve(at).source if space.translate(at) is None else ""
        if source:
            found.append({"address": Address(at), "source": source})
    return found


def _columns(page: Page, space: AddressSpace) -> list[str]:
    from coldframe.cli.kd import table_lines  # noqa: PLC0415 - keeps the call's words from loading numpy

    levels = {level.name for level in space.resolver.format.levels}
    if not any(step.level in levels for step in page.steps):  # no entry was there to be read
        return []
    return [*table_lines(page, space, out.console.width), ""]


def _copy(space: AddressSpace, start: int, length: int, output: Path) -> None:
    """Write `length` bytes from `start` to a file, in which what reads as zeros or not at all is left a hole."""
    end = start + length
    pages = space.pages(start, end)
    with output.open("wb") as file:
        for span in space.spans(start, end, supplied=True):
            if span.physical is None and span.absent is None:
                continue
            first, last = max(span.start, start), min(span.end, end)
            for low in range(first, last, _CHUNK):
                data, _ = space.read_padded(low, min(_CHUNK, last - low))
                file.seek(low - start)
                file.write(data)
        missing = ~pages.readable
        for address, size in zip(pages.address[missing].tolist(), pages.size[missing].tolist(), strict=True):
            low, high = max(address, start), min(address + size, end)
            page = space.resolve(low)
            if low < high:
                err.print(f"{low:#x}-{high:#x}: {printable(page.reason)}")
        file.truncate(length)


@dataclass(frozen=True, slots=True)
class Place:
    """An address as the user wrote it: `symbol` (`module!name`, a kernel's name, or empty) and a number to add."""

    symbol: str
    number: int

    @classmethod
    def parse(cls, text: str) -> Place:
        """A number, a kernel symbol or `module!symbol` with an optional `+displacement`; raises `UsageError`."""
        symbol, _, displacement = text.partition("+")
        if "!" in symbol or (_SYMBOL.fullmatch(symbol) and not _HEXADECIMAL.fullmatch(symbol)):
            return cls(symbol, number(displacement) if displacement else 0)
        value = number(text)
        if not 0 <= value < 1 << 64:
            raise UsageError(f"expected an address below 2^64, found {text}")
        return cls("", value)

    def address(self, guest: Guest, pid: int | None) -> int:
        """The address in `guest`; a user module's symbol is one of process `pid`."""
        if not self.symbol:
            return self.number
        return guest.symbol(self.symbol, None if pid is None else guest.process(pid)) + self.number


def _space(guest: Guest, pid: int | None) -> AddressSpace:
    return guest.memory if pid is None else guest.process(pid).memory


def page_facts(page: Page, pid: int | None) -> dict[str, Value]:
    """A page as `pte --json` prints it."""
    return {
        "address": Address(page.address),
        "pid": pid,
        "state": str(page.state),
        "via": [str(via) for via in page.via],
        "physical": None if page.physical is None else Address(page.physical),
        "pagefile": None
        if page.pagefile is None
        else {"number": page.pagefile.number, "offset": Address(page.pagefile.offset)},
        "subsection": None
        if page.subsection is None
        else {
            "address": Address(page.subsection.address),
            "file": page.subsection.file,
            "file_offset": None if page.subsection.file_offset is None else Address(page.subsection.file_offset),
        },
        "readable": page.readable,
        "source": page.source,
        "reason": page.reason,
        "steps": [
            {
                "level": step.level,
                "entry_address": Address(step.entry_address),
                "value": Address(step.value),
                "says": step.says,
            }
            for step in page.steps
        ],
    }


def page_lines(page: Page) -> list[str]:
    """The path to a page in words: a line an entry, then the state and how it was reached."""
    lines = [f"[bold]{page.address:#x}[/bold]"]
    for step in page.steps:
        said = wrap(_step_words(step), out.console.width, initial_indent="  ", subsequent_indent="      ")
        lines += map(printable, said)
    via = f" via {', '.join(page.via)}" if page.via else ""
    colour = "green" if page.readable else "yellow"
    where = f" at physical {page.physical:#x}" if page.physical is not None else ""
    source = f" from {printable(page.source)}" if page.source else ""
    lines.append(f"  [{colour}]{page.state}{via}[/{colour}]{where}{source}")
    if page.reason:
        lines.append(f"  {printable(page.reason)}")
    return lines


def _step_words(step: Step) -> str:
    """`PXE at physical 0x1fbf80: page frame 1ffd9`: an entry without its value, which kd's columns have."""
    from coldframe.cli.kd import NAMES  # noqa: PLC0415 - keeps the call's words from loading numpy

    _, found, meaning = step.says.partition(f"{step.value:X}: ")
    if not found or not step.level.endswith("E"):  # a VAD, a place in the store: no entry of a table
        return step.says
    number = re.match(r"pfn ([0-9a-f]+)", meaning)
    if number is not None:
        meaning = f"page frame {number[1]}"
    virtual = step.level == "prototype PTE"
    return f"{NAMES.get(step.level, step.level)} at {'' if virtual else 'physical '}{step.entry_address:#x}: {meaning}"
