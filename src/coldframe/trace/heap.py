"""The heap of a process: what it allocates and frees, what it loses, what it frees twice.

Follows ntdll's RtlAllocateHeap, RtlReAllocateHeap and RtlFreeHeap, to which the C runtime's malloc and HeapAlloc come
down. A block is known from its allocation in the trace on; a block that was allocated earlier is freed without remark.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

from coldframe.debug import Call, Calls, Hit, LiveGuest
from coldframe.debug.deadline import Deadline
from coldframe.trace.decode import Value
from coldframe.trace.events import frame_text, when, who
from coldframe.windows.process import Process

_KINDS = {"RtlAllocateHeap": "allocate", "RtlReAllocateHeap": "reallocate", "RtlFreeHeap": "free"}
_MOST_BLOCKS = 1 << 20
_MOST_FREED = 1 << 16
_FRAMES = 12


@dataclass(frozen=True, slots=True)
class Block:
    """An allocated block: size in bytes, and the stack that asked for it, innermost function first."""

    size: int
    stack: tuple[str, ...]


@dataclass
class HeapBook:
    """The blocks of a heap as calls come in; knows nothing of guests.

    A block that is freed is remembered with the stack that freed it, the last `_MOST_FREED` of them.
    """

    blocks: dict[int, Block] = field(default_factory=dict)
    freed: OrderedDict[int, tuple[str, ...]] = field(default_factory=OrderedDict)
    double_frees: list[dict[str, Value]] = field(default_factory=list)

    def allocated(self, address: int, block: Block) -> None:
        """A call returned `address`; 0 when there was no memory."""
        if address and len(self.blocks) < _MOST_BLOCKS:
            self.blocks[address] = block
            self.freed.pop(address, None)

    def free(self, address: int, stack: tuple[str, ...]) -> str:
        """`address` is about to be freed: "freed", "unknown" (older than the trace), or "double free"."""
        if self.blocks.pop(address, None) is not None:
            self.freed[address] = stack
            if len(self.freed) > _MOST_FREED:
                self.freed.popitem(last=False)
            return "freed"
        first = self.freed.get(address)
        if first is None:
            return "unknown"
        self.double_frees.append({"address": f"{address:#x}", "stack": list(stack), "freed_by": list(first)})
        return "double free"

    def kept(self) -> list[Value]:
        """The blocks that are still allocated, by the stack that asked for them, the most bytes first."""
        by_stack: dict[tuple[str, ...], list[int]] = {}
        for address, block in self.blocks.items():
            by_stack.setdefault(block.stack, []).append(address)
        sizes = {stack: sum(self.blocks[at].size for at in found) for stack, found in by_stack.items()}
        return [
            {
                "blocks": len(by_stack[stack]),
                "bytes": sizes[stack],
                "stack": list(stack),
                "addresses": [f"{at:#x}" for at in by_stack[stack][:_FRAMES]],
            }
            for stack in sorted(by_stack, key=lambda stack: -sizes[stack])
        ]


@dataclass(frozen=True, slots=True)
class _Entry:
    """What was seen when a call began."""

    kind: str
    address: int
    size: int
    stack: tuple[str, ...]
    verdict: str
    old: Block | None
    told: dict[str, Value]


class HeapTracer:
    """The tracer. `events` may be iterated once; `summary` tells what was kept and what was freed twice.

    A process that has only just started, and has no ntdll.dll yet, is followed from its first allocation.
    """

    def __init__(self, guest: LiveGuest, process: Process | str | int) -> None:
        self.guest = guest
        self.book = HeapBook()
        self._counts: Counter[str] = Counter()
        self._process = process = guest.process(process) if isinstance(process, str | int) else process
        self._points = [guest.break_on(f"ntdll!{name}", process, pending=True) for name in _KINDS]
        self._reallocating: set[int] = set()
        """Threads within RtlReAllocateHeap, which may call the other two."""

    def events(self, *, limit: int | None = None, duration: float | None = None) -> Iterator[dict[str, Value]]:
        """One event for each call that has returned, in the order of the returns.

        {"time", "pid", "process", "tid", "kind", "address", "size", "stack"}: `kind` is "allocate", "reallocate" (then
        "from" is the old address) or "free" (then "verdict" is "freed", "unknown": older than the trace, or "double
        free"). An address is "0x0" where there was no memory. Ends when the process exits, too.
        """
        deadline = Deadline(duration)
        count = 0
        with Calls(self.guest, self._points, self._entered, self._outermost, self._process) as calls:
            while limit is None or count < limit:
                call = calls.wait(deadline.left)
                if call is None:
                    return
                yield self._returned(call)
                count += 1

    def summary(self) -> dict[str, Value]:
        """Counts of the calls, what is still allocated by stack, and what was freed twice."""
        return {
            "allocations": self._counts["allocate"],
            "reallocations": self._counts["reallocate"],
            "frees": self._counts["free"],
            "kept": self.book.kept(),
            "double_frees": list(self.book.double_frees),
        }

    def _outermost(self, hit: Hit) -> Hit | None:
        return None if hit.ethread in self._reallocating else hit

    def _entered(self, hit: Hit) -> _Entry:
        kind = _KINDS[hit.function.partition("!")[2]]
        stack = tuple(frame_text(frame) for frame in hit.callstack(limit=_FRAMES))[1:]
        told = {"time": when(hit), **who(hit), "kind": kind}
        address, size, verdict, old = 0, 0, "", None
        if kind == "allocate":
            size = hit.args[2]
        elif kind == "free":
            address = hit.args[2]
            old = self.book.blocks.get(address)
            verdict = self.book.free(address, stack) if address else "freed"
        else:
            address, size = hit.args[2], hit.args[3]
            old = self.book.blocks.pop(address, None)
            self._reallocating.add(hit.ethread)
        return _Entry(kind, address, size, stack, verdict, old, told)

    def _returned(self, call: Call[_Entry]) -> dict[str, Value]:
        entry = call.noted
        self._counts[entry.kind] += 1
        told = dict(entry.told)
        if entry.kind == "free":
            told |= {"address": f"{entry.address:#x}", "size": entry.old.size if entry.old else None}
            told["verdict"] = entry.verdict
        else:
            told |= {"address": f"{call.result:#x}", "size": entry.size}
            if entry.kind == "reallocate":
                told["from"] = f"{entry.address:#x}"
                self._moved(call.entered.ethread, entry, call.result)
            self.book.allocated(call.result, Block(entry.size, entry.stack))
        return told | {"stack": list(entry.stack)}

    def _moved(self, ethread: int, entry: _Entry, result: int) -> None:
        """A reallocation has returned: the old block is gone, or still there where there was no memory."""
        self._reallocating.discard(ethread)
        if result == 0 and entry.old is not None:
            self.book.allocated(entry.address, entry.old)
        elif result != entry.address and entry.old is not None and entry.address not in self.book.blocks:
            self.book.freed[entry.address] = entry.stack
