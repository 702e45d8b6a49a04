"""The crashed thread's stack in a triage dump: unwound as far as the blocks hold unwind data, the rest scanned for.

A scanned frame is a guess, and says so: a value on the stack that lies in a driver's code may be left over from a call
that has long returned. Where the bytes before it are in a block, they must be a call.
"""

from __future__ import annotations

from collections.abc import Iterator

from coldframe.debug.callstack import MOST_FRAMES, Frame, StackWalker
from coldframe.debug.prologue import follows_call
from coldframe.errors import CapabilityError, ColdframeError, UnreadableMemoryError
from coldframe.windows.triageguest import TriageGuest

_FIRST_CODE = 0x1000  # an image's headers take its first page
_LONGEST_CALL = 7


def triage_callstack(guest: TriageGuest) -> list[Frame]:
    """The frames of the thread that crashed; each says how it was found. Raises `CapabilityError`."""
    registers = guest.registers(0)
    if "rip" not in registers:
        raise CapabilityError("the dump's header has no registers of the thread that crashed")
    if guest.dump.pointer_size == 8:
        frames = StackWalker(guest).walk(registers)
    else:
        frames = [_frame(guest, registers["rip"], registers["rsp"], "the 32-bit stack is not unwound")]
    if frames[-1].how != "end of stack":
        frames += _scanned(guest, frames[-1].stack_pointer, MOST_FRAMES - len(frames))
    return frames


def _scanned(guest: TriageGuest, start: int, limit: int) -> Iterator[Frame]:
    low, size = guest.dump.stack
    word, found = guest.dump.pointer_size, 0
    start = max(-(-start // word) * word, low)
    try:
        data = guest.memory.read(start, low + size - start) if start < low + size else b""
    except UnreadableMemoryError:
        return
    for at in range(0, len(data) - word + 1, word):
        value = int.from_bytes(data[at : at + word], "little")
        module = guest.module_at(value)
        if module is None or value - module.base < _FIRST_CODE or found >= limit:
            continue
        checked = "behind a call"
        try:
            guest.memory.read(value - _LONGEST_CALL, _LONGEST_CALL)
            if not follows_call(guest.memory, value):
                continue
        except UnreadableMemoryError:
            checked = "no block holds its code"
        found += 1
        yield _frame(guest, value, start + at + word, f"scan: found at {start + at:#x} ({checked}), may be stale")


def _frame(guest: TriageGuest, address: int, stack_pointer: int, how: str) -> Frame:
    module = guest.module_at(address)
    try:
        nearest = None if module is None else module.symbols.symbols.nearest(address - module.base)
    except ColdframeError:  # no symbols: the module's name and the distance from its base say it
        nearest = None
    symbol, displacement = nearest if nearest else (None, address - module.base if module else 0)
    stem = module.stem if module is not None else None
    user = address < 1 << 8 * guest.dump.pointer_size - 1
    return Frame(address, stack_pointer, None, stem, symbol, displacement, how, user)
