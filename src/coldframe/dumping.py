"""Writing what a user names, an image or a running guest, into a file of another format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from coldframe.errors import UsageError
from coldframe.target import AbsentPagesFrom, PathLike, attach, open_target, symbol_store

if TYPE_CHECKING:
    from coldframe.images.output import Progress
    from coldframe.memory import PhysicalMemory
    from coldframe.qemu import VirtualMachine
    from coldframe.windows import Guest

SUFFIXES: Mapping[str, tuple[str, ...]] = {
    "raw": (".raw", ".bin", ".vmem"),
    "elf": (".elf", ".core"),
    "dmp": (".dmp",),
}
"""The formats that are written, and the suffixes that mean them."""


def dump(
    target: PathLike,
    output: PathLike,
    *,
    format: str | None = None,  # noqa: A002 - the option's name on the command line
    symbols: Sequence[PathLike] = (),
    progress: Progress | None = None,
    pid: int | None = None,
    **absent: Unpack[AbsentPagesFrom],
) -> tuple[str, ...]:
    """Write the physical memory of `target`, an image or a running guest, to the file `output`; returns warnings.

    With `pid` the address space of that process instead: see `coldframe.processdump`. Pages of it that left RAM come
    from where `absent` says, as in `coldframe.open_image`.

    `format` is "raw", "elf" (ELF core) or "dmp" (Windows crash dump), by default as `output`'s suffix says. A crash
    dump needs the kernel's symbols, unless the target is a crash dump itself. A running guest is paused meanwhile.
    The file appears when it is whole; then it replaces what was there. Raises `OutputError`, and what opening raises.
    """
    if pid is not None:
        from coldframe import processdump  # noqa: PLC0415 - only a process needs it

        chosen = format_of(output, format, processdump.SUFFIXES)
        with open_target(target, symbols=symbols, **absent) as guest:
            return processdump.write_process(guest.process(pid), Path(output), chosen, progress)
    chosen, path = format_of(output, format), Path(output)
    if Path(target).is_file():
        return _dump_image(Path(target), path, chosen, symbols, progress)
    if chosen == "dmp":
        with attach(target, symbols=symbols) as guest:
            guest.pause()
            return write_guest(guest, path, progress)
    if not Path(target).exists() and ("/" in str(target) or Path(target).suffix):
        raise UsageError(f"no memory image or QMP socket at {target}")
    from coldframe.qemu import VirtualMachine  # noqa: PLC0415 - an image needs no QEMU

    with VirtualMachine.attach(str(target)) as vm:
        vm.pause()
        _write(path, chosen, vm.physical, [_registers(vm, vcpu) for vcpu in range(vm.vcpus)], progress)
    return ()


def format_of(output: PathLike, given: str | None = None, known: Mapping[str, tuple[str, ...]] = SUFFIXES) -> str:
    """The format of `known` to write: `given`, else what the suffix of `output` means; raises `UsageError`."""
    if given is not None:
        if given not in known:
            raise UsageError(f"expected a format of {', '.join(known)}, found {given!r}")
        return given
    for name, suffixes in known.items():
        if Path(output).suffix.lower() in suffixes:
            return name
    endings = " ".join(suffix for suffixes in known.values() for suffix in suffixes)
    raise UsageError(f"expected a file name ending in one of {endings}, or --format; found {output}")


def write_guest(guest: Guest, output: PathLike, progress: Progress | None = None) -> tuple[str, ...]:
    """Write a crash dump of `guest`, which must not run meanwhile; returns warnings. Raises `OutputError`."""
    from coldframe.images.write import write_crash_dump  # noqa: PLC0415
    from coldframe.windows.crashfacts import crash_header  # noqa: PLC0415

    before = len(guest.warnings)
    header = crash_header(guest).pack()
    write_crash_dump(output, guest.physical, header, progress)
    return tuple(guest.warnings[before:])


def _dump_image(
    target: Path, output: Path, chosen: str, symbols: Sequence[PathLike], progress: Progress | None
) -> tuple[str, ...]:
    from coldframe.images import open_image  # noqa: PLC0415
    from coldframe.images.write import write_crash_dump  # noqa: PLC0415
    from coldframe.windows import Guest  # noqa: PLC0415

    with open_image(target) as image:
        warnings = list(image.warnings)
        if chosen != "dmp":
            _write(output, chosen, image.physical, image.registers, progress)
        elif image.crash_header is not None:
            write_crash_dump(output, image.physical, image.crash_header, progress)
        else:
            with Guest.open(image.physical, symbol_store(symbols), registers=image.registers) as guest:
                warnings += write_guest(guest, output, progress)
    return tuple(warnings)


def _write(
    output: Path,
    chosen: str,
    physical: PhysicalMemory,
    registers: Sequence[Mapping[str, int]],
    progress: Progress | None,
) -> None:
    from coldframe.images.write import write_elf, write_raw  # noqa: PLC0415

    if chosen == "raw":
        write_raw(output, physical, progress)
    else:
        write_elf(output, physical, registers, progress)


def _registers(vm: VirtualMachine, vcpu: int) -> Mapping[str, int]:
    tables = vm.descriptor_tables(vcpu)
    return dict(vm.registers(vcpu)) | {
        "idt_base": tables.idt_base,
        "idt_limit": tables.idt_limit,
        "gdt_base": tables.gdt_base,
        "gdt_limit": tables.gdt_limit,
    }
