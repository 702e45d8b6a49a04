"""The instruction under a breakpoint, carried out from outside: what it does to registers and memory.

A vCPU that stands on a breakpoint is usually taken over it by one single step, which costs a stop of its own. The first
instruction of a function is nearly always a plain one (it saves a register on the stack, moves RSP, clears a register),
and what it does can as well be written into the registers while the guest stands still. `compile_instruction` turns the
bytes of one instruction into a function that tells its effect, or says that the processor has to do it.

Source: Intel SDM volume 2, the "Operation" and "Flags Affected" sections of each instruction. Bits of EFLAGS that the
SDM leaves undefined (AF after a logical instruction) are cleared, as processors do. Only 64-bit mode.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from iced_x86 import Decoder, Instruction, MemorySizeExt, Mnemonic, OpKind, Register, RegisterExt

_NAMES = {value: name.lower() for name, value in vars(Register).items() if isinstance(value, int) and name[0] != "_"}
_HIGH_BYTES = frozenset((Register.AH, Register.BH, Register.CH, Register.DH))
_ALL = (1 << 64) - 1

_CF, _PF, _AF, _ZF, _SF, _OF = 1 << 0, 1 << 2, 1 << 4, 1 << 6, 1 << 7, 1 << 11
_STATUS = _CF | _PF | _AF | _ZF | _SF | _OF
_EVEN = tuple(_PF if byte.bit_count() % 2 == 0 else 0 for byte in range(256))
"""PF of a result whose low byte is the index."""

Value = Callable[["State"], int]
Action = Callable[["State"], None]


class NotOursError(Exception):
    """This instruction, here and now, is left to the processor: its memory is not there, or not to be written."""


class ReachesMemory(Protocol):
    """Virtual memory as the instruction would reach it, without a fault and without a bit of a PTE changing."""

    def read(self, address: int, size: int) -> int:
        """The `size` bytes at `address`, little-endian; raises `NotOursError` where reading them does more."""
        ...

    def check_write(self, address: int, size: int) -> None:
        """Raises `NotOursError` where writing there does more than change the bytes."""
        ...


@dataclass(slots=True)
class State:
    """A vCPU before the instruction, and what the instruction has changed of it so far.

    `written` are registers by name; `stored` are (virtual address, bytes). RIP is not among them.
    """

    registers: Mapping[str, int]
    memory: ReachesMemory
    written: dict[str, int] = field(default_factory=dict)
    stored: list[tuple[int, bytes]] = field(default_factory=list)

    def store(self, address: int, size: int, value: int) -> None:
        """Put the low `size` bytes of `value` at `address`."""
        self.memory.check_write(address, size)
        self.stored.append((address, (value & ((1 << 8 * size) - 1)).to_bytes(size, "little")))

    def set_status(self, flags: int, keep: int = 0) -> None:
        """Set the status flags, but leave those in `keep` as they are."""
        old = self.registers["eflags"]
        self.written["eflags"] = (old & ~(_STATUS & ~keep)) | (flags & ~keep)


@dataclass(frozen=True, slots=True)
class Emulated:
    """One instruction: `size` bytes long; `act` carries it out on a `State` or raises `NotOursError`."""

    size: int
    act: Action


def compile_instruction(code: bytes, address: int) -> Emulated | None:
    """What the instruction at the beginning of `code`, which lies at `address`, does; None leaves it to the processor.

    `code` holds the whole instruction (up to 15 bytes) and may hold more.
    """
    instruction = Decoder(64, code[:15], ip=address).decode()
    compiler = _COMPILERS.get(instruction.mnemonic)
    if compiler is None or instruction.has_rep_prefix or instruction.has_repne_prefix:
        return None
    action = compiler(instruction)
    return None if action is None else Emulated(instruction.len, action)


# Operands


def _register(instruction: Instruction, operand: int) -> tuple[str, int] | None:
    """(name of the 64-bit register, size in bytes) of an operand in the low part of a general register."""
    register = instruction.op_register(operand)
    if not RegisterExt.is_gpr(register) or register in _HIGH_BYTES:
        return None
    return _NAMES[RegisterExt.full_register(register)], RegisterExt.size(register)


def _address(instruction: Instruction) -> Value | None:
    """The effective address of the memory operand (`lea` takes it without the segment)."""
    base, index = instruction.memory_base, instruction.memory_index
    displacement, scale = instruction.memory_displacement, instruction.memory_index_scale
    if base == Register.RIP:
        return lambda state: displacement  # it already holds the address of the operand
    parts = [register for register in (base, index) if register != Register.NONE]
    if any(not RegisterExt.is_gpr64(register) for register in parts):
        return None  # 32-bit addresses
    if index == Register.NONE:
        if base == Register.NONE:
            return lambda state: displacement
        name = _NAMES[base]
        return lambda state: state.registers[name] + displacement & _ALL
    scaled = _NAMES[index]
    if base == Register.NONE:
        return lambda state: state.registers[scaled] * scale + displacement & _ALL
    name = _NAMES[base]
    return lambda state: state.registers[name] + state.registers[scaled] * scale + displacement & _ALL


def _linear(instruction: Instruction) -> Value | None:
    """The linear address of the memory operand: FS and GS have a base in 64-bit mode, the other segments none."""
    address = _address(instruction)
    segment = instruction.memory_segment
    if address is None or segment not in (Register.FS, Register.GS):
        return address
    base = "fs_base" if segment == Register.FS else "gs_base"
    effective = address
    return lambda state: state.registers[base] + effective(state) & _ALL


def _source(instruction: Instruction, operand: int, size: int) -> Value | None:
    """The value of operand number `operand`, of `size` bytes."""
    kind = instruction.op_kind(operand)
    mask = (1 << 8 * size) - 1
    if kind == OpKind.REGISTER:
        found = _register(instruction, operand)
        if found is None:
            return None
        name = found[0]
        return lambda state: state.registers[name] & mask
    if kind == OpKind.MEMORY:
        address = _linear(instruction)
        return None if address is None else lambda state: state.memory.read(address(state), size)
    if OpKind.IMMEDIATE8 <= kind <= OpKind.IMMEDIATE32TO64:
        value = instruction.immediate(operand) & mask
        return lambda state: value
    return None


def _width(instruction: Instruction, operand: int = 0) -> int:
    """Bytes of an operand in a register or in memory."""
    if instruction.op_kind(operand) == OpKind.REGISTER:
        return RegisterExt.size(instruction.op_register(operand))
    return MemorySizeExt.size(instruction.memory_size)


def _destination(instruction: Instruction, size: int) -> Callable[[State, int], None] | None:
    """What puts a value of `size` bytes into the first operand."""
    kind = instruction.op0_kind
    if kind == OpKind.MEMORY:
        address = _linear(instruction)
        return None if address is None else lambda state, value: state.store(address(state), size, value)
    found = _register(instruction, 0) if kind == OpKind.REGISTER else None
    if found is None:
        return None
    name = found[0]
    if size >= 4:  # a 32-bit result clears the upper half
        return lambda state, value: state.written.__setitem__(name, value)
    kept = _ALL & ~((1 << 8 * size) - 1)
    return lambda state, value: state.written.__setitem__(name, state.registers[name] & kept | value)


# What each instruction does


def _mov(instruction: Instruction) -> Action | None:
    size = _width(instruction)
    source, put = _source(instruction, 1, size), _destination(instruction, size)
    return None if source is None or put is None else lambda state: put(state, source(state))


def _movzx(instruction: Instruction) -> Action | None:
    source, put = _source(instruction, 1, _width(instruction, 1)), _destination(instruction, _width(instruction))
    return None if source is None or put is None else lambda state: put(state, source(state))


def _movsx(instruction: Instruction) -> Action | None:
    narrow, wide = _width(instruction, 1), _width(instruction)
    source, put = _source(instruction, 1, narrow), _destination(instruction, wide)
    if source is None or put is None:
        return None
    sign, mask = 1 << (8 * narrow - 1), (1 << 8 * wide) - 1
    return lambda state: put(state, ((source(state) ^ sign) - sign) & mask)


def _lea(instruction: Instruction) -> Action | None:
    size = _width(instruction)
    address, put = _address(instruction), _destination(instruction, size)
    mask = (1 << 8 * size) - 1
    return None if address is None or put is None else lambda state: put(state, address(state) & mask)


def _push(instruction: Instruction) -> Action | None:
    source = _source(instruction, 0, 8)
    if source is None or instruction.stack_pointer_increment != -8:
        return None

    def act(state: State) -> None:
        top = (state.registers["rsp"] - 8) & _ALL
        state.store(top, 8, source(state))
        state.written["rsp"] = top

    return act


def _pop(instruction: Instruction) -> Action | None:
    put = _destination(instruction, 8)
    if put is None or instruction.op0_kind != OpKind.REGISTER or instruction.stack_pointer_increment != 8:
        return None

    def act(state: State) -> None:
        top = state.registers["rsp"]
        state.written["rsp"] = (top + 8) & _ALL
        put(state, state.memory.read(top, 8))  # `pop rsp` leaves what it read

    return act


def _nothing(_: Instruction) -> Action:
    return lambda state: None


def _result_flags(result: int, bits: int) -> int:
    """ZF, SF and PF."""
    return (0 if result else _ZF) | (_SF if result >> (bits - 1) else 0) | _EVEN[result & 0xFF]


def _sum(a: int, b: int, bits: int) -> tuple[int, int]:
    result = (a + b) & ((1 << bits) - 1)
    flags = _result_flags(result, bits) | (_CF if result < a else 0) | (a ^ b ^ result) & _AF
    return result, flags | (_OF if ((a ^ result) & (b ^ result)) >> (bits - 1) else 0)


def _difference(a: int, b: int, bits: int) -> tuple[int, int]:
    result = (a - b) & ((1 << bits) - 1)
    flags = _result_flags(result, bits) | (_CF if a < b else 0) | (a ^ b ^ result) & _AF
    return result, flags | (_OF if ((a ^ b) & (a ^ result)) >> (bits - 1) else 0)


def _conjunction(a: int, b: int, bits: int) -> tuple[int, int]:
    return a & b, _result_flags(a & b, bits)


def _union(a: int, b: int, bits: int) -> tuple[int, int]:
    return a | b, _result_flags(a | b, bits)


def _symmetric(a: int, b: int, bits: int) -> tuple[int, int]:
    return a ^ b, _result_flags(a ^ b, bits)


Arithmetic = Callable[[int, int, int], tuple[int, int]]
"""(first operand, second, bits) -> (result, status flags)."""


def _arithmetic(operation: Arithmetic, *, keeps: bool = True) -> Callable[[Instruction], Action | None]:
    """Instructions of two operands; `keeps` says that the result goes into the first."""

    def compiler(instruction: Instruction) -> Action | None:
        size = _width(instruction)
        first, second = _source(instruction, 0, size), _source(instruction, 1, size)
        put = _destination(instruction, size)
        if first is None or second is None or put is None:
            return None
        bits = 8 * size

        def act(state: State) -> None:
            result, flags = operation(first(state), second(state), bits)
            if keeps:
                put(state, result)
            state.set_status(flags)

        return act

    return compiler


def _by_one(operation: Arithmetic) -> Callable[[Instruction], Action | None]:
    """INC and DEC: they leave CF alone."""

    def compiler(instruction: Instruction) -> Action | None:
        size = _width(instruction)
        source, put = _source(instruction, 0, size), _destination(instruction, size)
        if source is None or put is None:
            return None
        bits = 8 * size

        def act(state: State) -> None:
            result, flags = operation(source(state), 1, bits)
            put(state, result)
            state.set_status(flags, keep=_CF)

        return act

    return compiler


_COMPILERS: dict[int, Callable[[Instruction], Action | None]] = {
    Mnemonic.MOV: _mov,
    Mnemonic.MOVZX: _movzx,
    Mnemonic.MOVSX: _movsx,
    Mnemonic.MOVSXD: _movsx,
    Mnemonic.LEA: _lea,
    Mnemonic.PUSH: _push,
    Mnemonic.POP: _pop,
    Mnemonic.NOP: _nothing,
    Mnemonic.ENDBR64: _nothing,
    Mnemonic.ADD: _arithmetic(_sum),
    Mnemonic.SUB: _arithmetic(_difference),
    Mnemonic.AND: _arithmetic(_conjunction),
    Mnemonic.OR: _arithmetic(_union),
    Mnemonic.XOR: _arithmetic(_symmetric),
    Mnemonic.CMP: _arithmetic(_difference, keeps=False),
    Mnemonic.TEST: _arithmetic(_conjunction, keeps=False),
    Mnemonic.INC: _by_one(_sum),
    Mnemonic.DEC: _by_one(_difference),
}
