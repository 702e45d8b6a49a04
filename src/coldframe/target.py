"""Opening what a user names: a memory image, a running QEMU's QMP socket, or a libvirt domain."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, TypeVar, Unpack

from coldframe.errors import UsageError

if TYPE_CHECKING:
    from coldframe.debug import LiveGuest
    from coldframe.resident import ResidentGuest
    from coldframe.resident.machines import Bus
    from coldframe.resident.phases import ImagesInRam, Tell
    from coldframe.symbols import SymbolStore
    from coldframe.windows import Guest

    _Opened = TypeVar("_Opened", bound=Guest)

PathLike = str | os.PathLike[str]
_NONE: Mapping[int, PathLike] = {}


class AbsentPagesFrom(TypedDict, total=False):
    """Where pages that left RAM are read from.

    `disk` is the guest's virtual disk, or are its disks (`FILE@SNAPSHOT` for a qcow2's internal snapshot); `pagefiles`
    are copies of its paging files by their number; `no_disk` reads RAM alone.
    """

    disk: PathLike | Sequence[PathLike]
    pagefiles: Mapping[int, PathLike]
    no_disk: bool


def symbol_store(symbols: Sequence[PathLike] = ()) -> SymbolStore:
    """A store that looks in `symbols` (PDBs, ISF files, folders, stores) and then along `_NT_SYMBOL_PATH`."""
    from coldframe.symbols import SymbolStore  # noqa: PLC0415 - keeps `import coldframe` quick

    missing = [str(path) for path in symbols if not Path(path).exists()]
    if missing:
        raise UsageError(f"no such symbol file or folder: {', '.join(missing)}")
    return SymbolStore(paths=[Path(path) for path in symbols], nt_symbol_path=os.environ.get("_NT_SYMBOL_PATH"))


def open_image(path: PathLike, *, symbols: Sequence[PathLike] = (), **absent: Unpack[AbsentPagesFrom]) -> Guest:
    """Open the Windows guest in a memory image, told by the file's content, not by its name.

    Pages that left RAM are read from where `absent` says: `disk`, `pagefiles`, `no_disk`, as in `AbsentPagesFrom`.

    Raises `FormatError` for a file that is damaged, `NoKernelError` when it holds no NT kernel,
    `SymbolFileNotFoundError` when the kernel's PDB is nowhere. The guest is a context manager.
    """
    from coldframe.images import open_image as open_physical  # noqa: PLC0415 - keeps `attach` from loading formats
    from coldframe.images import triage_dump  # noqa: PLC0415
    from coldframe.windows import Guest  # noqa: PLC0415

    if not Path(path).is_file():
        raise UsageError(f"expected a memory image at {os.fspath(path)}, found no such file")
    dump = triage_dump(path)
    if dump is not None:
        from coldframe.windows.triageguest import TriageGuest  # noqa: PLC0415 - loads numpy

        return TriageGuest.of_dump(dump, symbol_store(symbols))
    image = open_physical(path)
    return _reading_from(Guest.open(image.physical, symbol_store(symbols), registers=image.registers), absent)


def _reading_from(guest: _Opened, absent: AbsentPagesFrom) -> _Opened:
    """`guest`, which reads pages that left RAM from there; closed where that is not to be had."""
    try:
        _use(guest, **absent)
    except BaseException:
        guest.close()
        raise
    return guest


def _use(
    guest: Guest,
    *,
    disk: PathLike | Sequence[PathLike] = (),
    pagefiles: Mapping[int, PathLike] = _NONE,
    no_disk: bool = False,
) -> None:
    if no_disk and (disk or pagefiles):
        raise UsageError("--no-disk leaves nothing to read from --disk or --pagefile")
    names = [disk] if isinstance(disk, str | os.PathLike) else list(disk)
    given = {number: Path(path) for number, path in pagefiles.items()}
    if no_disk:
        guest.pages.use(None)
    elif names:
        from coldframe.disk import open_image as open_disk  # noqa: PLC0415 - few need disks

        with ExitStack() as opened:  # closes them where one cannot be opened
            disks = [opened.enter_context(closing(open_disk(os.fspath(name)))) for name in names]
            opened.pop_all()
        guest.pages.use(lambda: disks, given)
    elif given:
        guest.pages.use(guest.own_disks, given)


def attach(target: PathLike, *, symbols: Sequence[PathLike] = (), **absent: Unpack[AbsentPagesFrom]) -> LiveGuest:
    """Attach to the Windows guest in a running QEMU, by its QMP socket's path or its libvirt domain's name.

    Pages that left RAM are read from the guest's disks, through the running QEMU, unless `absent` says otherwise:
    `disk`, `pagefiles`, `no_disk`, as in `AbsentPagesFrom`.

    The guest is paused inside the `with` block unless it is told to run, and left running with no breakpoint when the
    returned context manager ends, however it ends. Raises `GuestGoneError`, `NoKernelError`,
    `SymbolFileNotFoundError`.
    """
    from coldframe.debug import attach as attach_live  # noqa: PLC0415 - keeps `open_image` from loading the debugger

    return _reading_from(attach_live(os.fspath(target), store=symbol_store(symbols)), absent)


def boot(
    target: PathLike | Sequence[str], *, symbols: Sequence[PathLike] = (), memory: str = "4G", vcpus: int = 2,
    accelerator: str | None = None, bus: Bus = "sata", extra: Sequence[str] = (), qmp: PathLike | None = None,
    images_in_ram: ImagesInRam = "winpe", stealth: bool = False, until: str | None = None, settle: float = 5.0,
    timeout: float = 900.0, keep: bool = False, tell: Tell | None = None,
) -> ResidentGuest:  # fmt: skip
    """Boot a Windows guest so that no page ever leaves RAM, and verify it; the guest is paused then.

    `target` is a disk image, a QEMU command line (a list of words), a QMP socket or a libvirt domain. For a disk image
    `memory`, `vcpus`, `accelerator` (default: KVM where there is it), `bus` and `extra` (QEMU arguments) make the
    machine. `qmp` is where its QMP socket shall be. `until` and `settle` say how long the boot lasts behind csrss.exe,
    `timeout` seconds it may take until then; see `BootOptions` for the rest. Leaving the `with` block ends a machine
    that was started here, unless `keep`. Raises `BootTimeoutError`, `GuestGoneError`, `SymbolFileNotFoundError`.
    """
    from coldframe.resident import BootOptions, Machine  # noqa: PLC0415 - only a boot needs it
    from coldframe.resident import boot as boot_residently  # noqa: PLC0415

    options = BootOptions(images_in_ram, stealth, timeout, until, settle=settle)
    machine = Machine(memory, vcpus, accelerator, bus, tuple(extra))
    return boot_residently(
        target, store=symbol_store(symbols), machine=machine, options=options, qmp=qmp, keep=keep, tell=tell
    )


def open_target(target: PathLike, *, symbols: Sequence[PathLike] = (), **absent: Unpack[AbsentPagesFrom]) -> Guest:
    """Open `target`, whatever it is: a socket or a domain's name is attached to, a file is opened as an image."""
    path = Path(target)
    if path.is_file():
        return open_image(path, symbols=symbols, **absent)
    if not path.exists() and ("/" in os.fspath(target) or path.suffix):
        raise UsageError(f"no memory image or QMP socket at {os.fspath(target)}")
    return attach(target, symbols=symbols, **absent)
