"""The shell's magics: every verb of the command line, and kd's short words for a guest that is stopped and let go.

A verb runs here as it does on the command line, with the words of the line, on the guest that is open. The words of kd:
https://learn.microsoft.com/windows-hardware/drivers/debugger/commands
"""

from __future__ import annotations

import fnmatch
import shlex
from collections.abc import Callable
from types import TracebackType
from typing import Any

from IPython.core.magic import Magics, line_magic, magics_class
from IPython.terminal.embed import InteractiveShellEmbed
from traitlets.config import Config

from coldframe.cli.heldverbs import VERBS, call_of
from coldframe.cli.main import run
from coldframe.cli.render import err, hex_dump, out, printable
from coldframe.cli.trace import print_event
from coldframe.debug import Breakpoint, Hit, LiveGuest
from coldframe.errors import CapabilityError, ColdframeError, NotFoundError, UsageError
from coldframe.qemu.registers import GENERAL
from coldframe.trace import event
from coldframe.windows import Guest, Process

_SHOWN = (*GENERAL, "rip", "eflags", "cs", "ss", "ds", "es", "fs", "gs", "fs_base", "gs_base", "cr0", "cr3", "cr4")
"""The registers that %r shows where none is named."""
_MOST_LISTED = 200
_MOST_BYTES = 1 << 20
_LONGEST = 15


def make_shell(guest: Guest, target: str) -> InteractiveShellEmbed:
    """A shell with `guest` bound; not running yet."""
    config = Config()
    config.Completer.use_jedi = False
    config.Completer.evaluation = "unsafe"  # so that fields of structures complete: reading them changes nothing
    shell = InteractiveShellEmbed.instance(config=config, user_ns={"guest": guest, "process": None, "hit": None})
    magics = GuestMagics(shell, guest, target)
    shell.register_magics(magics)
    for verb in VERBS:
        shell.register_magic_function(magics.verb(verb), magic_name=verb)
    shell.set_custom_exc((ColdframeError,), _one_line)
    for name in ("bp", "x", "u", "ln", "pte", "read", "dt", "db", "dq", "trace"):
        shell.set_hook("complete_command", magics.complete, str_key=f"%{name}")
        shell.set_hook("complete_command", magics.complete, str_key=name)
    return shell


def _one_line(
    shell: Any, _kind: type[BaseException], error: BaseException, _trace: TracebackType, tb_offset: int | None = None
) -> None:
    err.print(f"[red]{printable(' '.join(str(error).split()))}[/red]")


@magics_class
class GuestMagics(Magics):
    """The magics of one shell."""

    def __init__(self, shell: InteractiveShellEmbed, guest: Guest, target: str) -> None:
        super().__init__(shell)
        self.guest = guest
        self.target = target
        self.points: dict[int, Breakpoint] = {}
        self._number = 0
        self._stands: int | None = None
        self._symbols: dict[str, list[str]] = {}

    @property
    def process(self) -> Process | None:
        """The process that was chosen."""
        chosen = self.shell.user_ns.get("process")
        return chosen if isinstance(chosen, Process) else None

    def verb(self, name: str) -> Callable[[str], None]:
        """The verb `name` as a magic."""

        def magic(line: str) -> None:
            pid = None if self.process is None else self.process.pid
            run(call_of(name, self.target, _words(line), pid))

        magic.__doc__ = f"The verb {name}, on the open guest: %{name} --help tells its words."
        return magic

    # Where one is

    @line_magic("process")
    def choose(self, line: str) -> Process | None:
        """Choose a process for what follows: %process PID, %process NAME; %process - for none."""
        words = line.strip()
        if words == "-":
            self.shell.user_ns["process"] = None
        elif words:
            self.shell.user_ns["process"] = self.guest.process(int(words) if words.isdecimal() else words)
        return self.process

    @line_magic
    def k(self, line: str) -> None:
        """The call stack: of the vCPU that hit a breakpoint or made a step, else of the first; %k TID: of a thread."""
        words = line.strip()
        run(["stack", self.target, "--tid", words] if words else ["stack", self.target, "--vcpu", str(self._vcpu)])

    @line_magic
    def lm(self, line: str) -> None:
        """Modules of the chosen process, drivers where none is chosen."""
        run(
            ["drivers", self.target]
            if self.process is None
            else ["modules", self.target, "--pid", str(self.process.pid)]
        )

    # Symbols and code

    @line_magic
    def x(self, line: str) -> None:
        """Symbols that match a pattern: %x nt!NtCreate*."""
        module_name, _, pattern = line.strip().rpartition("!")
        module = self._module(module_name or "nt")
        matching = (item for item in module.symbols.symbols.items() if fnmatch.fnmatchcase(item[0], pattern or "*"))
        for count, (name, rva) in enumerate(matching):
            if count == _MOST_LISTED:
                out.print(f"... and more: only {_MOST_LISTED} are shown")
                return
            out.print(f"{module.base + rva:#x}  {module.stem}!{printable(name)}")

    @line_magic
    def ln(self, line: str) -> str:
        """The symbol at or below an address."""
        return self.guest.symbolize(self._address(line), self.process)

    @line_magic
    def u(self, line: str) -> None:
        """Disassemble: %u ADDRESS [INSTRUCTIONS]."""
        import iced_x86  # noqa: PLC0415 - only here

        words = line.split() or ["."]
        address, count = self._address(words[0]), _number(words[1], "INSTRUCTIONS") if len(words) > 1 else 8
        data, _ = self._memory.read_padded(address, min(count, _MOST_LISTED) * _LONGEST)
        formatter = iced_x86.Formatter(iced_x86.FormatterSyntax.MASM)
        decoder = iced_x86.Decoder(8 * self.guest.types.pointer_size, data, ip=address)
        out.print(f"{printable(self.guest.symbolize(address, self.process))}:")
        for _, instruction in zip(range(count), decoder, strict=False):
            start = instruction.ip - address
            code = data[start : start + instruction.len].hex()
            out.print(f"{instruction.ip:016x}  {code:<20}  {formatter.format(instruction)}", markup=False)

    @line_magic
    def db(self, line: str) -> None:
        """Bytes: %db ADDRESS [SIZE]."""
        address, size = self._span(line, 128)
        data, holes = self._memory.read_padded(address, size)
        for text in hex_dump(data, address, holes):
            out.print(text, markup=False)

    @line_magic
    def dq(self, line: str) -> None:
        """Eight bytes at a time, with the symbols they point at: %dq ADDRESS [SIZE]."""
        address, size = self._span(line, 64)
        for at in range(address, address + size, 8):
            value = int.from_bytes(self._memory.read(at, 8), "little")
            known = self.guest.symbolize(value, self.process) if value >> 16 else ""
            out.print(f"{at:016x}  {value:016x}  {known if '!' in known else ''}", markup=False)

    # A running guest

    @line_magic
    def bp(self, line: str) -> None:
        """Set a breakpoint: %bp nt!NtWriteFile [--if EXPRESSION] [--once]; of the chosen process if there is one."""
        words = _words(line)
        once = "--once" in words
        words = [word for word in words if word != "--once"]
        condition = words.pop(words.index("--if") + 1) if "--if" in words[:-1] else None
        places = [word for word in words if word != "--if"]
        if len(places) != 1:
            raise UsageError(f"expected %bp WHERE [--if EXPRESSION] [--once], found {line!r}")
        point = self._live.break_on(places[0], self.process, condition=condition, once=once)
        point.insert()
        self.points[self._number] = point
        out.print(f"{self._number}: {printable(point.name)} at {point.address:#x}")
        self._number += 1

    @line_magic
    def bl(self, line: str) -> None:
        """The breakpoints that are set, and how often each was hit."""
        self._forget_done()
        for number, point in self.points.items():
            out.print(f"{number}: {printable(point.name)} at {point.address:#x}, {point.hits} hits")

    @line_magic
    def bc(self, line: str) -> None:
        """Remove a breakpoint: %bc NUMBER, or %bc * for all."""
        numbers = list(self.points) if line.strip() == "*" else [_number(word, "NUMBER") for word in line.split()]
        if not numbers and line.strip() != "*":
            raise UsageError("expected %bc NUMBER or %bc *; %bl lists them")
        for number in numbers:
            point = self.points.pop(number, None)
            if point is None:
                raise NotFoundError("breakpoint", str(number), hint="%bl lists them")
            point.remove()

    @line_magic
    def g(self, line: str) -> None:
        """Let the guest run to the next breakpoint, or for so many seconds: %g [SECONDS]; `hit` is what happened."""
        seconds = _seconds(line) if line.strip() else None
        self._forget_done()
        try:
            hit = self._next_hit(seconds)
        except KeyboardInterrupt:
            self._live.pause()
            hit = None
        self.shell.user_ns["hit"] = hit
        self._stands = None if hit is None else hit.vcpu
        if hit is None:
            out.print("no hit; the guest is paused")
        else:
            print_event(event(hit))

    def _next_hit(self, seconds: float | None) -> Hit | None:
        if self.points:
            return self._live.next_hit(tuple(self.points.values()), seconds)
        if seconds is None:
            raise UsageError("no breakpoint is set: %bp sets one, or say for how many seconds")
        with self._live.break_on("nt!KeBugCheckEx") as never:
            return never.wait(seconds)

    def _forget_done(self) -> None:
        """Breakpoints that were for once, and were hit, are no more."""
        self.points = {number: point for number, point in self.points.items() if point.is_set}

    @line_magic
    def t(self, line: str) -> None:
        """One instruction of a vCPU, the others frozen: %t [VCPU]."""
        vcpu = _number(line, "VCPU") if line.strip() else self._vcpu
        self._live.step(vcpu)
        self._stands = vcpu
        self.u(f"{self._live.registers(vcpu)['rip']:#x} 1")

    @line_magic
    def r(self, line: str) -> None:
        """Registers: %r [VCPU], %r rax rip; %r rax=1 sets one."""
        words = line.split()
        vcpu = int(words.pop(0)) if words and words[0].isdecimal() else self._vcpu
        for word in [word for word in words if "=" in word]:
            name, _, value = word.partition("=")
            self._live.write_registers(vcpu, {name: self._address(value)})
        registers = self.guest.registers(vcpu)
        shown = [word.partition("=")[0] for word in words] or [name for name in _SHOWN if name in registers]
        for name in shown:
            out.print(f"{name:>8} {registers[name]:#018x}", markup=False)

    @line_magic
    def coldframe(self, line: str) -> None:
        """What there is."""
        out.print("verbs: " + " ".join(f"%{verb}" for verb in VERBS), markup=False)
        for name in ("process", "k", "lm", "x", "ln", "u", "db", "dq", "bp", "bl", "bc", "g", "t", "r"):
            help_text = self.shell.find_line_magic(name).__doc__ or ""
            out.print(f"%{name:<8} {help_text.splitlines()[0]}", markup=False)

    # Completion

    def complete(self, _shell: Any, asked: Any) -> list[str]:
        """Symbols, modules and types for the word at the cursor."""
        word = asked.line.rpartition(" ")[2]
        module_name, bang, start = word.rpartition("!")
        before = "" if "!" not in asked.symbol else f"{module_name}{bang}"  # IPython may break words at the `!`
        try:
            if asked.command.lstrip("%") == "dt":
                return [before + name for name in self.guest.types.names() if name.startswith(start)]
            names = self._symbols.get(module_name)
            if names is None:
                symbols = self._module(module_name or "nt").symbols.symbols
                names = self._symbols[module_name] = [name for name, _ in symbols.items()]
        except ColdframeError:
            return []
        return [before + name for name in names if name.startswith(start)][:_MOST_LISTED]

    # What the magics share

    @property
    def _live(self) -> LiveGuest:
        if not isinstance(self.guest, LiveGuest):
            raise CapabilityError(f"this needs a running guest, and {self.target} is a memory image")
        return self.guest

    @property
    def _vcpu(self) -> int:
        """The vCPU that hit a breakpoint or made a step, else the first."""
        return 0 if self._stands is None else self._stands

    @property
    def _memory(self) -> Any:
        return self.guest.memory if self.process is None else self.process.memory

    def _module(self, name: str) -> Any:
        if self.process is not None and name != "nt":
            try:
                return self.process.module(name)
            except NotFoundError:
                return self.guest.module(name)
        return self.guest.module(name)

    def _address(self, text: str) -> int:
        """A number, a register of the hit (`@rcx`), a symbol, or a Python expression of the shell's names."""
        text = text.strip()
        if text == "." or text.startswith("@"):
            return self.guest.registers(self._vcpu)["rip" if text == "." else text[1:]]
        try:
            return int(text.replace("`", ""), 16 if "`" in text else 0)
        except ValueError:
            pass
        if "!" in text or self.guest.variable(text.partition("+")[0]) is not None:
            name, _, offset = text.partition("+")
            module, _, _ = name.rpartition("!")
            inside = self.process if module and module != "nt" else None
            return self.guest.symbol(name, inside) + (_number(offset, "offset") if offset else 0)
        try:
            value = self.shell.ev(text)
        except ColdframeError:
            raise
        except Exception as error:
            raise UsageError(f"expected an address, @register, symbol or expression, found {text!r}: {error}") from None
        if not isinstance(value, int):
            raise UsageError(f"expected an address, found {value!r}")
        return value

    def _span(self, line: str, otherwise: int) -> tuple[int, int]:
        words = line.split()
        if not words:
            raise UsageError("expected ADDRESS [SIZE]")
        size = _number(words[1], "SIZE") if len(words) > 1 else otherwise
        if not 0 < size <= _MOST_BYTES:
            raise UsageError(f"expected a size from 1 to {_MOST_BYTES:#x} bytes, found {size}")
        return self._address(words[0]), size


def _words(line: str) -> list[str]:
    """The words of a line, as the shell of the command line would take them apart."""
    try:
        return shlex.split(line)
    except ValueError as error:
        raise UsageError(f"cannot read {line!r}: {error}") from None


def _number(text: str, what: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        raise UsageError(f"expected a number for {what}, found {text!r}") from None


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"expected %g [SECONDS], found {text!r}") from None
