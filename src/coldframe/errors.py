"""Every error that coldframe raises on purpose.

One small family: `ColdframeError` is caught once, by the command line, and printed as one line. A message says what
was asked, what was found, and what would help. `exit_status` is what the command line ends with: 1 when the guest or
the file does not allow it, 2 when the call's words are wrong.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class ColdframeError(Exception):
    """The base of the family; never raised itself."""

    exit_status = 1


class UsageError(ColdframeError):
    """The call's words are wrong."""

    exit_status = 2


class FormatError(ColdframeError):
    """A file or a structure in it is not what its format says; the message names the file, the place, both values."""


class UnreadableMemoryError(ColdframeError):
    """Bytes that cannot be had: a physical hole, or a virtual page whose state keeps them elsewhere.

    `address` is the first byte that could not be read, `size` how many bytes from there are known to be unreadable
    (so that a caller can skip the hole in one step), `reason` what stopped the read and what would unlock it.
    """

    def __init__(self, address: int, size: int, reason: str) -> None:
        super().__init__(f"cannot read {address:#x}: {reason}")
        self.address = address
        self.size = size
        self.reason = reason


class NotFoundError(ColdframeError):
    """A name that is not there; near names are offered."""

    def __init__(self, what: str, name: str, known: Iterable[str] = (), hint: str = "") -> None:
        near = get_close_matches(name, list(dict.fromkeys(known)), n=3, cutoff=0.6)
        offer = f"; did you mean {', '.join(near)}?" if near else ""
        super().__init__(f"no {what} {name!r}{offer}{'; ' + hint if hint else ''}")
        self.name = name
        self.near = tuple(near)


class SymbolNotFoundError(NotFoundError):
    """A symbol name that the module's symbols do not have."""


class TypeNotFoundError(NotFoundError):
    """A type or a field that the module's types do not have."""


class SymbolFileNotFoundError(ColdframeError):
    """No PDB or ISF file for a module: the message gives its name, GUID, age and where it was looked for."""


class NoKernelError(ColdframeError):
    """No NT kernel was found: the message gives each anchor that was tried and why it failed."""


class CapabilityError(ColdframeError):
    """The target lacks a capability (a dump cannot run); the message names the one missing."""


class GuestGoneError(ColdframeError):
    """The virtual machine ended, or its sockets were closed, while it was in use."""
