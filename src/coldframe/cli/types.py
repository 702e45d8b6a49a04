"""`dt`: structures of the kernel's and of modules' types, empty or at an address, as kd's command of that name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coldframe.cli.absent import open_target
from coldframe.cli.options import Json, Pid, SymbolPaths, number
from coldframe.cli.render import Address, Value, out, print_json, printable
from coldframe.errors import ColdframeError, NotFoundError, UsageError

if TYPE_CHECKING:
    from coldframe.symbols.model import Types
    from coldframe.windows import Guest, Process
    from coldframe.windows.typed import TypedMemory
    from coldframe.windows.typetree import Line, TypeTree

_SYMBOL_FILES = (".pdb", ".json", ".xz", ".pd_")
_MOST_ENTRIES = 1 << 16


def register(app: typer.Typer) -> None:
    """Add this module's verb to `app`."""
    app.command()(dt)


def dt(
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET",
            help="A memory image, a QMP socket, a libvirt domain; or a PDB or ISF file, for types alone.",
            show_default=False,
        ),
    ],
    name: Annotated[
        str, typer.Argument(metavar="TYPE", help="`nt!_EPROCESS`, `_PEB`, `ntdll!_TEB`; a part with `*` lists names.")
    ],
    symbols: SymbolPaths,
    address: Annotated[
        str | None,
        typer.Argument(metavar="[ADDRESS]", help="Where one lies: a number, `nt!Symbol`, or `poi(nt!Symbol)`."),
    ] = None,
    fields: Annotated[list[str] | None, typer.Argument(metavar="[FIELD]...", help="Only these members.")] = None,
    pid: Pid = None,
    depth: Annotated[
        int, typer.Option("--depth", "-r", metavar="N", help="Open structures within, N levels deep.", min=0, max=16)
    ] = 0,
    link: Annotated[
        str | None,
        typer.Option(
            "--list", "-l", metavar="FIELD", help="ADDRESS is a list's head: show each entry linked by FIELD."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """A structure: its members, with their values when an address is given.

    \b
    coldframe dt memory.dmp nt!_EPROCESS
    coldframe dt win10.qmp _EPROCESS 'poi(nt!PsInitialSystemProcess)' UniqueProcessId ImageFileName Pcb -r 1
    coldframe dt memory.dmp _EPROCESS nt!PsActiveProcessHead ImageFileName --list ActiveProcessLinks
    coldframe dt ntkrnlmp.pdb '_MMPTE*'
    """
    if target.endswith(_SYMBOL_FILES) and Path(target).is_file():
        if address is not None:
            raise UsageError(f"{target} holds types and no memory: leave the address out")
        _show_types(_file_types(target), name, depth, as_json=as_json)
        return
    with open_target(target, symbols=symbols) as guest:
        process = guest.process(pid) if pid is not None else None
        memory, kind = _typed(guest, process, name)
        if address is None:
            _show_types(memory.types, kind, depth, as_json=as_json)
            return
        where = _address(guest, process, memory, address)
        from coldframe.windows.typetree import TypeTree  # noqa: PLC0415 - loads no numpy for a PDB alone

        tree = TypeTree(memory.types, memory, depth, tuple(fields or ()))
        starts = [where] if link is None else _entries(memory, where, kind, link)
        _show_values(tree, kind, starts, as_json=as_json, many=link is not None)


def _file_types(path: str) -> Types:
    from coldframe.symbols import load_symbols  # noqa: PLC0415

    return load_symbols(path).types


def _typed(guest: Guest, process: Process | None, name: str) -> tuple[TypedMemory, str]:
    """The memory and types of the module that `name` names (the kernel, if none), and the type's own name."""
    memory = process.memory if process is not None else guest.memory
    module_name, bang, kind = name.rpartition("!")
    if not bang or module_name.lower() == "nt":
        return guest.typed.over(memory), kind
    module = process.module(module_name) if process is not None else guest.module(module_name)
    return module.typed.over(memory), kind


def _address(guest: Guest, process: Process | None, memory: TypedMemory, text: str) -> int:
    """An address as users write it; `poi(...)` is the pointer there, as in kd."""
    if text.startswith("poi(") and text.endswith(")"):
        return memory.pointer(_address(guest, process, memory, text[4:-1]))
    name, _, offset = text.partition("+")
    if name[:1].isdigit():
        return number(text)
    module = name.partition("!")[0].lower() if "!" in name else "nt"
    try:
        at = guest.symbol(name) if process is None or module == "nt" else guest.symbol(name, process)
    except NotFoundError:
        if process is None:
            raise
        at = guest.symbol(name)
    return at + (number(offset) if offset else 0)


def _entries(memory: TypedMemory, head: int, kind: str, link: str) -> Iterator[int]:
    entries = memory.struct("_LIST_ENTRY", head).entries(kind, link)
    for entry, _ in zip(entries, range(_MOST_ENTRIES), strict=False):
        yield entry.address


# Showing


def _show_types(types: Types, name: str, depth: int, *, as_json: bool) -> None:
    from coldframe.symbols.model import Enum  # noqa: PLC0415
    from coldframe.windows.typetree import TypeTree, constants  # noqa: PLC0415

    name = name.rpartition("!")[2]
    if "*" in name:
        _show_names(types, name, as_json=as_json)
        return
    found = types.find(name)
    if isinstance(found, Enum):
        if as_json:
            print_json({"type": name, "size": found.base.size, "constants": dict(constants(found))})
            return
        for constant, value in constants(found):
            out.print(f"   {printable(constant)} = {value:#x} ({value})")
        return
    record = types.record(name)
    lines = list(TypeTree(types, None, depth).lines(name))
    if as_json:
        print_json({"type": name, "size": record.size, "fields": _nested(lines)})
        return
    out.print(f"{record.kind} {printable(name)}, {record.size:#x} bytes")
    _print_lines(lines)


def _show_names(types: Types, pattern: str, *, as_json: bool) -> None:
    from fnmatch import fnmatchcase  # noqa: PLC0415

    names = sorted(name for name in types.names() if fnmatchcase(name, pattern))
    if as_json:
        print_json([{"type": name, "size": types.size(name)} for name in names])
        return
    for name in names:
        out.print(f"{types.size(name):#7x}  {printable(name)}")


def _show_values(tree: TypeTree, name: str, starts: Iterable[int], *, as_json: bool, many: bool) -> None:
    size = tree.types.size(name)
    shown = ((at, list(tree.lines(name, at))) for at in starts)
    if not many:
        shown = (_readable(*one) for one in shown)
    if as_json:
        found: list[Value] = [
            {"type": name, "address": Address(at), "size": size, "fields": _nested(lines)} for at, lines in shown
        ]
        print_json(found if many else found[0])
        return
    for at, lines in shown:
        out.print(f"{printable(name)} at {at:#x}, {size:#x} bytes")
        _print_lines(lines)


def _readable(at: int, lines: list[Line]) -> tuple[int, list[Line]]:
    """What is shown of one structure; raises `ColdframeError` where nothing of it can be read."""
    troubles = [line.trouble for line in lines if line.trouble]
    if troubles and not any(line.value is not None or line.meaning for line in lines):
        raise ColdframeError(f"nothing of the structure at {at:#x} can be read: {troubles[0]}")
    return at, lines


def _print_lines(found: list[Line]) -> None:
    from coldframe.windows.typetree import written  # noqa: PLC0415

    width = max((len(line.name) + 3 * line.depth for line in found), default=0)
    for line in found:
        indent = "   " * line.depth
        name = f"{printable(line.name):<{width - len(indent)}}"
        out.print(f"   {indent}+{line.offset:#05x} {name} : {printable(written(line))}")


def _nested(lines: list[Line]) -> list[Value]:
    """Lines as JSON, members of a member within it."""
    from coldframe.symbols.model import Pointer  # noqa: PLC0415
    from coldframe.windows.fields import type_name  # noqa: PLC0415

    top: list[Value] = []
    levels: list[list[Value]] = [top]
    for line in lines:
        del levels[line.depth + 1 :]
        entry: dict[str, Value] = {"name": line.name, "offset": line.offset, "type": type_name(line.type)}
        if line.value is not None:
            entry["value"] = Address(line.value) if isinstance(line.type, Pointer) else line.value
        if line.meaning:
            entry["meaning"] = line.meaning.strip('"')
        if line.trouble:
            entry["unreadable"] = line.trouble
        inner: list[Value] = []
        levels[line.depth].append(entry)
        entry["fields"] = inner
        levels.append(inner)
    return _without_empty(top)


def _without_empty(entries: list[Value]) -> list[Value]:
    for entry in entries:
        if isinstance(entry, dict):
            if entry["fields"]:
                _without_empty(entry["fields"])
            else:
                del entry["fields"]
    return entries
