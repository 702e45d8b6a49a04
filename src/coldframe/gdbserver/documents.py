"""The XML documents that a client asks for: threads, libraries; and what a client of LLDB asks about memory.

Formats: GDB's manual, "Thread List Format" and "Library List Format"; LLDB's documentation, "GDB Remote Protocol
Extensions" (`qMemoryRegionInfo`). GDB places a PE image by the address of its first section, as gdbserver for Windows
tells it, not by its base.
"""

from __future__ import annotations

from collections.abc import Iterable
from xml.sax.saxutils import quoteattr

from coldframe.errors import ColdframeError
from coldframe.gdbserver.inferior import Shown
from coldframe.processfacts import elf_flags
from coldframe.windows import Module, Process

_FIRST_SECTION = 0x1000
_ACCESS = ((4, "r"), (2, "w"), (1, "x"))


def threads_xml(threads: Iterable[tuple[str, Shown]]) -> str:
    """The list of threads, each with its name in the protocol."""
    lines = ['<?xml version="1.0"?>', "<threads>"]
    for name, shown in threads:
        core = "" if shown.vcpu is None else f' core="{shown.vcpu}"'
        lines.append(f'<thread id="{name}"{core} name={quoted(shown.name)}>{quoted(shown.state)[1:-1]}</thread>')
    return "\n".join([*lines, "</threads>", ""])


def libraries_xml(modules: Iterable[Module]) -> str:
    """The list of libraries: each image's path as the guest has it, and where its first section lies."""
    lines = ['<?xml version="1.0"?>', '<library-list version="1.0">']
    for module in modules:
        name = quoted(module.path or module.name)
        lines.append(f'<library name={name}><segment address="{module.base + first_section(module):#x}"/></library>')
    return "\n".join([*lines, "</library-list>", ""])


def first_section(module: Module) -> int:
    """How far behind its base an image's first section lies."""
    try:
        return min((section.rva for section in module.image().sections), default=_FIRST_SECTION)
    except ColdframeError:
        return _FIRST_SECTION


def region(process: Process | None, address: int, end: int) -> str:
    """What lies at `address` in the user half of `process`: the VAD with its protection and file, or the gap there."""
    after, flags = end, 0 if process is None else elf_flags(process)(address)
    for vad in process.vads if process is not None else ():
        if address in vad:
            access = "".join(letter for bit, letter in _ACCESS if flags & bit)
            name = f"name:{vad.file.encode().hex()};" if vad.file else ""
            return f"start:{vad.start:x};size:{vad.end - vad.start:x};permissions:{access};{name}"
        if vad.start > address:
            after = min(after, vad.start)
    return f"start:{address:x};size:{max(after - address, 1):x};"


def quoted(text: str) -> str:
    """`text`, which may be the guest's, as an XML attribute with its quotes; what cannot be printed is left out."""
    return quoteattr("".join(c for c in text if c.isprintable()).encode("utf-8", "replace").decode())
