"""Opening what a user names: a memory image, a running QEMU's QMP socket, or a libvirt domain."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from coldframe.errors import UsageError

if TYPE_CHECKING:
    from coldframe.debug import LiveGuest
    from coldframe.symbols import SymbolStore
    from coldframe.windows import Guest

PathLike = str | os.PathLike[str]


def symbol_store(symbols: Sequence[PathLike] = ()) -> SymbolStore:
    """A store that looks in `symbols` (PDBs, ISF files, folders, stores) and then along `_NT_SYMBOL_PATH`."""
    from coldframe.symbols import SymbolStore  # noqa: PLC0415 - keeps `import coldframe` quick

    missing = [str(path) for path in symbols if not Path(path).exists()]
    if missing:
        raise UsageError(f"no such symbol file or folder: {', '.join(missing)}")
    return SymbolStore(paths=[Path(path) for path in symbols], nt_symbol_path=os.environ.get("_NT_SYMBOL_PATH"))


def open_image(path: PathLike, *, symbols: Sequence[PathLike] = ()) -> Guest:
    """Open the Windows guest in a memory image, told by the file's content, not by its name.

    Raises `FormatError` for a file that is damaged, `NoKernelError` when it holds no NT kernel,
    `SymbolFileNotFoundError` when the kernel's PDB is nowhere. The guest is a context manager.
    """
    from coldframe.images import open_image as open_physical  # noqa: PLC0415 - keeps `attach` from loading formats
    from coldframe.windows import Guest  # noqa: PLC0415

    if not Path(path).is_file():
        raise UsageError(f"expected a memory image at {os.fspath(path)}, found no such file")
    image = open_physical(path)
    return Guest.open(image.physical, symbol_store(symbols), registers=image.registers)


def attach(target: PathLike, *, symbols: Sequence[PathLike] = ()) -> LiveGuest:
    """Attach to the Windows guest in a running QEMU, by its QMP socket's path or its libvirt domain's name.

    The guest is paused inside the `with` block unless it is told to run, and left running with no breakpoint when the
    returned context manager ends, however it ends. Raises `GuestGoneError`, `NoKernelError`,
    `SymbolFileNotFoundError`.
    """
    from coldframe.debug import attach as attach_live  # noqa: PLC0415 - keeps `open_image` from loading the debugger

    return attach_live(os.fspath(target), store=symbol_store(symbols))


def open_target(target: PathLike, *, symbols: Sequence[PathLike] = ()) -> Guest:
    """Open `target`, whatever it is: a socket or a domain's name is attached to, a file is opened as an image."""
    path = Path(target)
    if path.is_file():
        return open_image(path, symbols=symbols)
    if not path.exists() and ("/" in os.fspath(target) or path.suffix):
        raise UsageError(f"no memory image or QMP socket at {os.fspath(target)}")
    return attach(target, symbols=symbols)
