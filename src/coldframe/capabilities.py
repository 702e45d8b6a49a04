"""What a target can do, as small protocols.

A memory image has `ReadsMemory` (and `ReadsRegisters` when the format carries them); a live guest has all of them.
Nothing asks "is it live?": code asks for the capability it needs, and `require` names the one that is missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, TypeVar, runtime_checkable

from coldframe.errors import CapabilityError

_Capability = TypeVar("_Capability")


@runtime_checkable
class ReadsMemory(Protocol):
    """Bytes at an address; addresses are virtual or physical as the object says."""

    def read(self, address: int, size: int) -> bytes:
        """Return exactly `size` bytes at `address`, or raise `UnreadableMemoryError`."""
        ...


@runtime_checkable
class WritesMemory(Protocol):
    """Bytes put at an address."""

    def write(self, address: int, data: bytes) -> None:
        """Put all of `data` at `address`; on error nothing was written."""
        ...


@runtime_checkable
class ReadsRegisters(Protocol):
    """Registers of each vCPU, by their Intel names in lower case (`rip`, `cr3`, `gs_base`, `k_gs_base`)."""

    def registers(self, vcpu: int) -> Mapping[str, int]:
        """Return the registers of vCPU number `vcpu` (from 0)."""
        ...


@runtime_checkable
class Runs(Protocol):
    """A machine that runs and can be paused."""

    def pause(self) -> None:
        """Stop all vCPUs; no effect when they are stopped."""
        ...

    def resume(self) -> None:
        """Let all vCPUs run; every cache of the pause is dropped."""
        ...


def require(target: object, capability: type[_Capability], purpose: str) -> _Capability:
    """Return `target` as `capability`, or raise `CapabilityError` naming what is missing for `purpose`."""
    if isinstance(target, capability):
        return target
    raise CapabilityError(f"{purpose} needs a target that {_verb(capability)}; {target!r} does not")


def _verb(capability: type[object]) -> str:
    """`ReadsRegisters` -> "reads registers"."""
    return "".join(" " + c.lower() if c.isupper() else c for c in capability.__name__).strip()
