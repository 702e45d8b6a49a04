"""One client's session: each packet's answer.

Specification: GDB's manual, "Remote Serial Protocol"; for LLDB, "GDB Remote Protocol Extensions" in its documentation.
A packet that is not known has an empty answer, one that is damaged or asks for too much, an error: `E` and an errno.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

from coldframe.debug import LiveGuest
from coldframe.errors import (
    CapabilityError,
    ColdframeError,
    GuestGoneError,
    NotFoundError,
    UnreadableMemoryError,
    UsageError,
)
from coldframe.gdbserver.connection import LONGEST, Connection, escape
from coldframe.gdbserver.description import Description, Register
from coldframe.gdbserver.documents import libraries_xml, region, threads_xml
from coldframe.gdbserver.hostfiles import HostFiles
from coldframe.gdbserver.inferior import Inferior, Shown, numbered
from coldframe.gdbserver.running import Halt, LiveRunner, Runner, StandingRunner
from coldframe.gdbserver.words import TOP, bytes_of_hex, number_of, point_of, shown_packet
from coldframe.memory import PAGE_SIZE
from coldframe.qemu.packets import INTERRUPT

Monitor = Callable[[str, int | None], str]
"""Carries out a line of the client's `monitor`, for the Windows thread of that identifier; returns what to show."""
Log = Callable[[str], None]

_MOST_BYTES = LONGEST // 2 - 16
_MOST_THREADS_A_PACKET = 256
_EXPEDITED = ("rbp", "rsp", "rip")
_FEATURES = (
    f"PacketSize={LONGEST - 16:x}", "QStartNoAckMode+", "qXfer:features:read+", "qXfer:threads:read+",
    "qXfer:libraries:read+", "vContSupported+", "swbreak+", "hwbreak+",
)  # fmt: skip
_ALL = -1


class Session:
    """Answers one client until it lets go."""

    def __init__(
        self, inferior: Inferior, client: Connection, monitor: Monitor, log: Log, symbols: bytes | None = None
    ) -> None:
        self.inferior = inferior
        self._files = None if symbols is None else HostFiles("/coldframe.symbols", symbols, _MOST_BYTES)
        self.client = client
        self.log = log
        guest = inferior.guest
        self._monitor = monitor
        self._runner: Runner = LiveRunner(guest, inferior, client) if isinstance(guest, LiveGuest) else StandingRunner()
        self._description = Description(wide=guest.types.pointer_size == 8)
        self._multiprocess = False
        self._ended = False
        self._general = self._continued = 0
        self._halt = Halt()
        self._handlers: dict[bytes, Callable[[bytes], bytes]] = {
            b"?": lambda _: self._stop_reply(),
            b"g": lambda _: self._description.encoded(self._registers()),
            b"G": self._write_all,
            b"p": self._read_one,
            b"P": self._write_one,
            b"m": self._read,
            b"M": lambda words: self._write(words, bytes_of_hex),
            b"X": lambda words: self._write(words, bytes),
            b"Z": self._insert,
            b"z": self._remove,
            b"H": self._select,
            b"T": lambda words: (self._shown(self._thread(words)), b"OK")[1],
            b"c": lambda words: self._run(None, words),
            b"C": lambda words: self._run(None, words.partition(b";")[2]),
            b"s": lambda words: self._run(self._continued, words),
            b"S": lambda words: self._run(self._continued, words.partition(b";")[2]),
            b"D": lambda _: self._end(b"OK"),
            b"k": lambda _: self._end(b""),
            b"vCont?": lambda _: b"vCont;c;C;s;S;t",
            b"vCont;": self._continue,
            b"vKill;": lambda _: self._end(b"OK"),
            b"QStartNoAckMode": self._no_acknowledgement,
            b"QNonStop:0": lambda _: b"OK",
            b"qSupported": self._supported,
            b"qAttached": lambda _: b"1",
            b"qC": lambda _: b"QC" + self._name(self._shown(0).number),
            b"qSymbol:": lambda _: b"OK",
            b"qfThreadInfo": lambda _: self._thread_list(0),
            b"qsThreadInfo": lambda _: self._thread_list(self._listed),
            b"qThreadExtraInfo,": self._extra,
            b"qXfer:": self._document,
            b"qRcmd,": self._command,
            b"qHostInfo": lambda _: self._host().encode(),
            b"qProcessInfo": lambda _: f"pid:{self.inferior.pid:x};{self._host()}".encode(),
            b"qMemoryRegionInfo:": self._region,
            b"vFile:": lambda words: b"" if self._files is None else self._files.answer(words),
        }
        self._listed = 0

    def serve(self) -> None:
        """Answer until the client lets go; the guest runs on then, with no breakpoint of it.

        Raises `ClientGoneError`, `GuestGoneError`.
        """
        try:
            while not self._ended:
                payload = self.client.receive()
                if payload == INTERRUPT:  # it stands already
                    continue
                answer = self._answer(payload)
                self.log(f"{shown_packet(payload)} -> {shown_packet(answer)}")
                if not (self._ended and not answer):
                    self.client.send(answer)
        finally:
            self._runner.release()

    def _answer(self, payload: bytes) -> bytes:
        handler, words = self._handler(payload)
        if handler is None:
            return b""
        try:
            return handler(words)
        except GuestGoneError:
            self.client.send(b"X09")
            raise
        except UnreadableMemoryError as error:
            return self._refusal(error, errno.EFAULT)
        except CapabilityError as error:
            return self._refusal(error, errno.EACCES)
        except NotFoundError as error:
            return self._refusal(error, errno.ESRCH)
        except (ColdframeError, ValueError) as error:
            return self._refusal(error, errno.EINVAL)

    def _refusal(self, error: Exception, number: int) -> bytes:
        self.log(f"refused: {error}")
        return b"E%02x" % number

    def _handler(self, payload: bytes) -> tuple[Callable[[bytes], bytes] | None, bytes]:
        """What answers a packet, and its words: the longest name that it begins with."""
        names = [payload[:1]] if payload[:1] not in b"vqQ" else list(self._handlers)
        name = max((name for name in names if payload.startswith(name)), key=len, default=b"")
        return self._handlers.get(name), payload[len(name) :]

    # Threads

    def _name(self, number: int) -> bytes:
        return b"p%x.%x" % (self.inferior.pid, number) if self._multiprocess else b"%x" % number

    def _thread(self, words: bytes) -> int:
        """The number in a thread's name; 0 for any, -1 for all."""
        if words.startswith(b"p"):
            process, _, words = words[1:].partition(b".")
            if process not in (b"-1", b"0", b"%x" % self.inferior.pid):
                raise NotFoundError("process", process.decode("latin-1"))
            words = words or b"-1"
        return _ALL if words == b"-1" else number_of(words)

    def _shown(self, number: int) -> Shown:
        """The thread of that number; where any is meant, that which stopped, else the first."""
        if number in (0, _ALL):
            number = self._halt.thread
            if not any(shown.number == number for shown in self.inferior.threads()):
                number = 0
        return numbered(self.inferior, number)

    def _select(self, words: bytes) -> bytes:
        number = self._thread(words[1:])
        if number > 0:
            self._shown(number)
        if words[:1] == b"g":
            self._general = number
        elif words[:1] == b"c":
            self._continued = number
        else:
            return b""
        return b"OK"

    def _thread_list(self, first: int) -> bytes:
        threads = self.inferior.threads()[first : first + _MOST_THREADS_A_PACKET]
        self._listed = first + len(threads)
        return b"m" + b",".join(self._name(shown.number) for shown in threads) if threads else b"l"

    def _extra(self, words: bytes) -> bytes:
        shown = self._shown(self._thread(words))
        return ", ".join(filter(None, (shown.state, shown.name))).encode("utf-8", "replace").hex().encode()

    # Registers

    def _registers(self) -> dict[str, int]:
        return dict(self.inferior.registers(self._shown(self._general)))

    def _register(self, number: int) -> Register:
        if number >= len(self._description.registers):
            raise UsageError(f"expected a register below {len(self._description.registers)}, found {number}")
        return self._description.registers[number]

    def _read_one(self, words: bytes) -> bytes:
        return self._description.encoded(self._registers(), self._register(number_of(words)))

    def _write_one(self, words: bytes) -> bytes:
        number, _, value = words.partition(b"=")
        register = self._register(number_of(number))
        data = bytes_of_hex(value)
        if len(data) != register.size:
            raise UsageError(f"{register.shown} has {register.size} bytes, found {len(data)}")
        self.inferior.write_registers(self._shown(self._general), {register.name: int.from_bytes(data, "little")})
        self.inferior.guest.new_pause()
        return b"OK"

    def _write_all(self, words: bytes) -> bytes:
        known = self._registers()
        told = self._description.decoded(words)
        wide = {each.name: 1 << 8 * each.size for each in self._description.registers}
        changed = {
            name: value for name, value in told.items() if name not in known or value != known[name] % wide[name]
        }
        if changed:
            self.inferior.write_registers(self._shown(self._general), changed)
            self.inferior.guest.new_pause()
        return b"OK"

    # Memory

    def _span(self, words: bytes) -> tuple[int, int]:
        start, _, size = words.partition(b",")
        address, length = number_of(start), number_of(size)
        if address >= TOP or address + length > TOP:
            raise UsageError(f"expected addresses below 2^64, found {address:#x} and {length:#x} bytes")
        return address, length

    def _read(self, words: bytes) -> bytes:
        """As many bytes as can be had from the first on, at most those of a packet."""
        address, size = self._span(words)
        space = self.inferior.memory(self._shown_or_none())
        size = min(size, _MOST_BYTES)
        try:
            data = space.read(address, size)
        except UnreadableMemoryError as error:
            if error.address <= address:
                raise
            data = space.read(address, error.address - address)
        return data.hex().encode()

    def _write(self, words: bytes, decoded: Callable[[bytes], bytes]) -> bytes:
        head, _, data = words.partition(b":")
        address, size = self._span(head)
        content = decoded(data)
        if len(content) != size:
            raise UsageError(f"expected {size} bytes to write, found {len(content)}")
        if content:
            self.inferior.memory(self._shown_or_none()).write(address, content)
            self.inferior.guest.new_pause()
        return b"OK"

    def _shown_or_none(self) -> Shown | None:
        try:
            return self._shown(self._general)
        except NotFoundError:  # a process without a thread has memory all the same
            return None

    def _region(self, words: bytes) -> bytes:
        address, end = number_of(words) % TOP, self.inferior.guest.resolver.format.user_end
        if address < end:
            return region(self.inferior.process, address, end).encode("utf-8", "replace")
        access = b"permissions:rx;" if self.inferior.memory(self._shown_or_none()).readable(address) else b""
        return b"start:%x;size:%x;%b" % (address & ~(PAGE_SIZE - 1), PAGE_SIZE, access)

    # Breakpoints

    def _insert(self, words: bytes) -> bytes:
        self._runner.insert(*point_of(words))
        return b"OK"

    def _remove(self, words: bytes) -> bytes:
        self._runner.remove(*point_of(words))
        return b"OK"

    # Running

    def _continue(self, words: bytes) -> bytes:
        """`vCont`: the first action that names one thread, else the one for all. No thread can be held back."""
        actions = [action.partition(b":") for action in words.split(b";") if action]
        for action, _, name in actions:
            if action[:1] not in (b"c", b"C", b"s", b"S", b"t"):
                raise UsageError(f"expected the actions c, C, s, S and t, found {action[:16]!r}")
            if action[:1] in b"sS":
                return self._run(self._thread(name) if name else self._continued, b"")
        if any(action[:1] in b"cC" for action, _, _ in actions):
            return self._run(None, b"")
        return self._stop_reply()

    def _run(self, step: int | None, words: bytes) -> bytes:
        """Let the inferior run, or a thread step; from another address where `words` names one."""
        if words:
            self.inferior.write_registers(self._shown(self._continued), {"rip": number_of(words)})
        try:
            self._halt = self._runner.go() if step is None else self._runner.step(self._shown(step))
        except CapabilityError as error:
            self._print(f"coldframe: {error}\n")
            raise
        self._general = self._continued = self._halt.thread
        self.log(f"stopped: {self._halt}")
        return self._stop_reply()

    def _stop_reply(self) -> bytes:
        halt = self._halt
        if halt.exited:
            return b"W00;process:%x" % self.inferior.pid if self._multiprocess else b"W00"
        told = b"T%02x" % halt.signal
        try:
            shown = self._shown(halt.thread)
            registers = self.inferior.registers(shown)
        except ColdframeError:
            return told
        for name in _EXPEDITED:
            if name in registers:
                number = self._description.numbers[name]
                told += b"%x:%b;" % (number, self._description.encoded(registers, self._register(number)))
        told += b"thread:%b;" % self._name(shown.number)
        if shown.vcpu is not None:
            told += b"core:%x;" % shown.vcpu
        return told + halt.reason.encode()

    def _end(self, answer: bytes) -> bytes:
        self._ended = True
        return answer

    # What the client wants to know

    def _supported(self, words: bytes) -> bytes:
        self._multiprocess = b"multiprocess+" in words.strip(b":").split(b";")
        own = {"multiprocess+": self._multiprocess, "qXfer:exec-file:read+": self._files is not None}
        return ";".join([*_FEATURES, *(name for name, offered in own.items() if offered)]).encode()

    def _no_acknowledgement(self, _: bytes) -> bytes:
        self.client.acknowledges = False
        return b"OK"

    def _document(self, words: bytes) -> bytes:
        """`qXfer:OBJECT:read:ANNEX:OFFSET,LENGTH`: a part of a document."""
        parts = words.split(b":")
        if len(parts) != 4 or parts[1] != b"read":
            return b""
        if parts[0] == b"features" and parts[2] == b"target.xml":
            text = self._description.xml()
        elif parts[0] == b"threads":
            text = threads_xml((self._name(shown.number).decode(), shown) for shown in self.inferior.threads())
        elif parts[0] == b"libraries":
            text = self.inferior.guest.once("gdbserver libraries", lambda: libraries_xml(self.inferior.modules()))
        elif parts[0] == b"exec-file" and self._files is not None:
            text = self._files.path
        elif parts[0] == b"features":
            return b"E%02x" % errno.ENOENT
        else:
            return b""
        offset, _, size = parts[3].partition(b",")
        first, length = number_of(offset), min(number_of(size), _MOST_BYTES)
        data = text.encode()
        return (b"m" if first + length < len(data) else b"l") + escape(data[first : first + length])

    def _command(self, words: bytes) -> bytes:
        """A line of the client's `monitor`; what it prints goes before the answer, in pieces."""
        shown = self._shown_or_none()
        known = {} if shown is None else self.inferior.registers(shown)
        line = self._description.with_values(bytes_of_hex(words).decode("utf-8", "replace"), known)
        said = self._monitor(line, None if shown is None or shown.thread is None else shown.thread.tid)
        self._print(said)
        return b"OK"

    def _print(self, text: str) -> None:
        """Have the client show `text`."""
        data = text.encode("utf-8", "replace")
        for at in range(0, len(data), _MOST_BYTES):
            self.client.send(b"O" + data[at : at + _MOST_BYTES].hex().encode())

    def _host(self) -> str:
        triple = "x86_64-pc-windows-msvc" if self._description.wide else "i386-pc-windows-msvc"
        return f"triple:{triple.encode().hex()};ptrsize:{self._description.word};endian:little;ostype:windows;"
