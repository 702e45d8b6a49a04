"""A client of QEMU's gdbstub: the protocol's words, nothing of when to use them.

Specification: GDB's manual, "Remote Serial Protocol"; QEMU's gdbstub.c for what it makes of it. Requests that do not
let the guest run may be sent together and cost one round trip; after `vCont` nothing may follow, because any byte that
reaches QEMU while the guest runs stops it.
"""

from __future__ import annotations

import re
import socket
import time
from binascii import hexlify, unhexlify
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from coldframe.errors import CapabilityError, FormatError, GuestGoneError, UnreadableMemoryError
from coldframe.qemu.packets import INTERRUPT, RESYNC, PacketSocket, packet
from coldframe.qemu.registers import RegisterLayout, Registers

TRAP = 5
"""GDB's SIGTRAP: a breakpoint, a watchpoint, a step."""
_TIMEOUT = 10.0  # QEMU answers at once; more is a QEMU that hangs
_CHUNK = 0x700  # bytes of memory a packet: QEMU takes packets of 4096 characters, two a byte
_MOST_THREADS = 4096

KINDS = {"software": 0, "hardware": 1, "write": 2, "read": 3, "access": 4}
"""Kinds of breakpoint, with their number in `Z` and `z` packets."""

_SIGNAL = re.compile(rb"[TS]([0-9a-f]{2})")
_THREAD = re.compile(rb"thread:(?:p([0-9a-f]+)\.)?([0-9a-f]+);")
_WATCH = re.compile(rb"\b(?:r|a)?watch:([0-9a-f]+);")


@dataclass(frozen=True, slots=True)
class StopReply:
    """Why the guest stopped: the signal's number, the vCPU, the address of a watchpoint."""

    signal: int
    vcpu: int
    watch: int | None


@dataclass(frozen=True, slots=True)
class Thread:
    """A vCPU under the gdbstub's name for it."""

    process: int
    thread: int

    @property
    def name(self) -> bytes:
        """As the packets write it (multiprocess form)."""
        return b"p%x.%x" % (self.process, self.thread)


class GdbStub:
    """One connection to a gdbstub. vCPUs are numbered from 0 in the order of the stub's threads."""

    def __init__(self, sock: socket.socket) -> None:
        self.packets = PacketSocket(sock)
        self.threads: list[Thread] = []
        self._numbers: dict[tuple[int, int], int] = {}
        self._selected: int | None = None
        self._stopped: int | None = None
        self.layout = RegisterLayout({})
        self.physical = False
        self.broken_off = False
        """Whether an exception (Ctrl-C) left requests unanswered: `resynchronise` before the next."""
        self.step_without_interrupts = False

    def greet(self) -> None:
        """Agree on features and learn the vCPUs and the registers; the guest must be stopped."""
        supported = self.ask(b"qSupported:multiprocess+;xmlRegisters=i386")
        if b"multiprocess+" not in supported or b"qXfer:features:read+" not in supported:
            raise CapabilityError(f"the gdbstub lacks processes or target descriptions; it says {supported[:80]!r}")
        self.layout = RegisterLayout.read(self._document)
        self.physical = b"1" in self.ask(b"qqemu.Supported") or self.ask(b"qqemu.PhyMemMode") in (b"0", b"1")
        steps = self.ask(b"qqemu.sstepbits")
        self.step_without_interrupts = b"NOIRQ" in steps
        self.learn_threads()

    def learn_threads(self) -> None:
        """Ask for the vCPUs anew."""
        names: list[bytes] = []
        answer = self.ask(b"qfThreadInfo")
        while answer[:1] == b"m" and len(names) < _MOST_THREADS:
            names += answer[1:].split(b",")
            answer = self.ask(b"qsThreadInfo")
        self.threads = [Thread(*_thread_name(name)) for name in names]
        self._numbers = {(thread.process, thread.thread): number for number, thread in enumerate(self.threads)}
        if not self.threads:
            raise CapabilityError("the gdbstub shows no vCPU")

    def _document(self, name: str) -> bytes:
        text = bytearray()
        while True:
            part = self.ask(b"qXfer:features:read:%b:%x,%x" % (name.encode(), len(text), 0xFFB))
            text += part[1:]
            if part[:1] != b"m" or len(part) < 2:
                break
            if len(text) > 1 << 20:
                raise FormatError("the gdbstub's target description does not end")
        if part[:1] != b"l":
            raise FormatError(f"the gdbstub has no target description {name!r}; it says {part[:20]!r}")
        return bytes(text)

    # -- asking -----------------------------------------------------------------------------------------------------

    def ask_all(self, *requests: bytes) -> list[bytes]:
        """Send requests in one write and return their answers in order; the guest must be stopped."""
        self.broken_off = True
        self.packets.send(b"".join(map(packet, requests)))
        answers = [self.answer(request) for request in requests]
        self.broken_off = False
        return answers

    def answer(self, request: bytes = b"the last request") -> bytes:
        """The answer to a request that was sent already."""
        answer = self.packets.receive(_TIMEOUT)
        if answer is None:
            raise GuestGoneError(f"QEMU's gdbstub did not answer {request[:24]!r} within {_TIMEOUT:g} s")
        return answer

    def ask(self, request: bytes) -> bytes:
        """Send one request and return its answer."""
        return self.ask_all(request)[0]

    def resynchronise(self) -> None:
        """Bring the connection from any state to "stopped and idle": whatever was under way is dropped."""
        self.broken_off = True
        self._selected = self._stopped = None
        self.packets.send(RESYNC + packet(b"qC"))  # a question that is asked nowhere else
        deadline = time.monotonic() + _TIMEOUT
        while (answer := self.packets.receive(max(0.0, deadline - time.monotonic()))) is not None:
            if answer.startswith(b"QC"):
                self.broken_off = False
                return
        raise GuestGoneError("QEMU's gdbstub does not answer any more")

    # -- registers and memory ---------------------------------------------------------------------------------------

    def registers_request(self, vcpu: int) -> tuple[bytes, ...]:
        """The requests whose last answer `registers_answer` reads."""
        return (*self.selecting(vcpu), b"g")

    def registers_answer(self, answer: bytes) -> Registers:
        """Decode the answer to `g`."""
        try:
            raw = unhexlify(answer.replace(b"x", b"0"))
        except ValueError:
            raise FormatError(f"the gdbstub answers 'g' with {answer[:24]!r}") from None
        if len(raw) < self.layout.size:
            program_counter = self.layout.fields["rip"]
            if len(raw) < program_counter.offset + program_counter.size:
                raise FormatError(f"the gdbstub's registers are {len(raw)} bytes, expected {self.layout.size}")
            raw = raw.ljust(self.layout.size, b"\0")
        return Registers(self.layout, raw)

    def registers(self, vcpu: int) -> Registers:
        """Fetch the registers of a vCPU."""
        return self.registers_answer(self.ask_all(*self.registers_request(vcpu))[-1])

    def selecting(self, vcpu: int) -> tuple[bytes, ...]:
        """The request, to be sent now, that makes the registers and virtual memory of those behind it those of `vcpu`.

        None where they are already: QEMU selects the vCPU that hit a breakpoint (`gdb_set_stop_cpu`).
        """
        if self._selected == vcpu:
            return ()
        self._selected = vcpu
        return (b"Hg" + self.threads[vcpu].name,)

    def write_register_request(self, name: str, value: int) -> bytes:
        """The request that writes one register of the selected vCPU."""
        return b"P%x=%b" % (self.layout.fields[name].number, hexlify(self.layout.encoded(name, value)))

    def write_register(self, vcpu: int, name: str, value: int) -> None:
        """Write one register; raises `CapabilityError` when QEMU refuses."""
        answer = self.ask_all(*self.selecting(vcpu), self.write_register_request(name, value))[-1]
        if answer != b"OK":
            raise CapabilityError(f"QEMU does not let register {name} be written ({answer.decode('latin-1')})")

    def write_memory_request(self, address: int, data: bytes) -> bytes:
        """The request that writes up to a packet's worth of bytes in the selected vCPU's address space.

        It goes past the access rights and changes no bit of a PTE. In PhyMemMode the address is guest-physical.
        """
        return b"M%x,%x:%b" % (address, len(data), hexlify(data))

    def read_physical(self, address: int, size: int) -> bytes:
        """Guest-physical bytes; raises `UnreadableMemoryError`."""
        parts = [(at, min(_CHUNK, address + size - at)) for at in range(address, address + size, _CHUNK)]
        reads = [b"m%x,%x" % part for part in parts]
        answers = self.ask_all(b"Qqemu.PhyMemMode:1", *reads, b"Qqemu.PhyMemMode:0")[1:-1]
        for (at, length), answer in zip(parts, answers, strict=True):
            if len(answer) != 2 * length:
                raise UnreadableMemoryError(at, length, "QEMU's gdbstub does not read it")
        return bytes.fromhex(b"".join(answers).decode("ascii"))

    def write_physical(self, address: int, data: bytes) -> None:
        """Write guest-physical bytes; raises `CapabilityError`."""
        writes = [self.write_memory_request(address + at, data[at : at + _CHUNK]) for at in range(0, len(data), _CHUNK)]
        answers = self.ask_all(b"Qqemu.PhyMemMode:1", *writes, b"Qqemu.PhyMemMode:0")[1:-1]
        if any(answer != b"OK" for answer in answers):
            raise CapabilityError(f"QEMU's gdbstub does not write {len(data)} bytes at physical {address:#x}")

    def read_virtual(self, vcpu: int, address: int, size: int) -> bytes | None:
        """Up to a packet's worth of bytes in the current address space of a vCPU, or None."""
        answer = self.ask_all(*self.selecting(vcpu), b"m%x,%x" % (address, min(size, _CHUNK)))[-1]
        return bytes.fromhex(answer.decode("ascii")) if len(answer) == 2 * min(size, _CHUNK) else None

    # -- running ----------------------------------------------------------------------------------------------------

    def start(self, *before: bytes, step: int | None = None) -> list[bytes]:
        """Send requests and let the guest run, all in one write: every vCPU, or one instruction of vCPU `step` alone.

        Returns the answers to the requests; the guest runs by then.
        """
        run = b"vCont;c" if step is None else b"vCont;s:" + self.threads[step].name
        self.broken_off = True
        self.packets.send(b"".join(map(packet, (*before, run))))
        answers = [self.answer(request) for request in before]
        self.broken_off = False
        return answers

    def start_from(self, vcpu: int, address: int, before: Iterable[bytes]) -> None:
        """Send requests whose answers are `OK` and let every vCPU run, `vcpu` from `address`, all in one write.

        The answers come before the stop reply; nobody waits for them now. `c ADDRESS` is of the vCPU that stopped last
        (QEMU's `handle_continue`, and `gdb_set_stop_cpu` before it).
        """
        run: tuple[bytes, ...] = (b"c%x" % address,)
        if self._stopped != vcpu:
            run = (self.write_register_request("rip", address), b"vCont;c")
        self.broken_off = True
        self.packets.send(b"".join(map(packet, (*self.selecting(vcpu), *before, *run))))
        self.broken_off = False

    def interrupt(self) -> None:
        """Ask a running guest to stop; the stop reply comes."""
        self.packets.send(INTERRUPT)

    def stop_reply(self, payload: bytes) -> StopReply:
        """Decode a stop reply; raises `GuestGoneError` when the machine ended."""
        if payload[:1] in (b"W", b"X"):
            raise GuestGoneError("the virtual machine has ended")
        signal, thread, watch = _stop(payload)
        vcpu = 0 if thread is None else self._numbers.get(thread, 0)
        self._selected = self._stopped = vcpu if signal == TRAP and thread in self._numbers else None
        return StopReply(signal, vcpu, watch)


@lru_cache(maxsize=64)
def _stop(payload: bytes) -> tuple[int, tuple[int, int] | None, int | None]:
    """(signal, the thread's name, the address of a watchpoint) of a stop reply; they come again and again."""
    signal, thread, watch = _SIGNAL.match(payload), _THREAD.search(payload), _WATCH.search(payload)
    if signal is None:
        raise FormatError(f"the gdbstub says {payload[:24]!r} where a stop was expected")
    name = None if thread is None else (int(thread[1] or b"1", 16), int(thread[2], 16))
    return int(signal[1], 16), name, None if watch is None else int(watch[1], 16)


def _thread_name(name: bytes) -> tuple[int, int]:
    process, dot, thread = name.removeprefix(b"p").partition(b".")
    return (int(process, 16), int(thread, 16)) if dot else (1, int(process, 16))
