"""Taking a vCPU past the breakpoint that it stands on, so that no other vCPU slips past it.

- Carried out: what the instruction does to registers and memory is written into the guest in the same write that lets
  it run (`instructions`). The breakpoint stays set; the hit costs the guest one stop.
- Stepped: where the processor has to do it, one single step with all other vCPUs frozen, a stop of its own. Under TCG
  a single step ignores breakpoints, so that they stay in; under KVM the breakpoint is taken out for the step.

An instruction may be started more than once (`arrivals`): those whose step did not end behind them are remembered.
"""

from __future__ import annotations

from coldframe.qemu.arrivals import (
    LONGEST_INSTRUCTION,
    Stop,
    entered_handler,
    goes_to_handler,
    identity,
    is_repeated,
    stays,
)
from coldframe.qemu.breakpoints import Breakpoints
from coldframe.qemu.execution import Execution
from coldframe.qemu.gdbstub import StopReply
from coldframe.qemu.instructions import Instructions
from coldframe.qemu.registers import Registers

_MOST_REPEATS = 1 << 16
MOST_EMPTY_STEPS = 4
"""How often a step is tried again that did not move the vCPU: TCG ends some before the instruction."""
_MOST_UNFINISHED = 256


class Passing:
    """Passes breakpoints of one guest, which must be stopped."""

    def __init__(
        self, execution: Execution, breakpoints: Breakpoints, instructions: Instructions, accelerator: str
    ) -> None:
        self._execution = execution
        self._breakpoints = breakpoints
        self._instructions = instructions
        self._steps_ignore_breakpoints = accelerator == "tcg"
        self._steps_were_tried = accelerator != "tcg"
        self.unfinished: dict[tuple[int, bytes], None] = {}
        """(address, identity) of the reported arrivals whose instruction has still to be carried out."""

    def let_run(self, vcpu: int, before: Registers) -> Stop | None:
        """Let every vCPU run, `vcpu`, which stands on a breakpoint with the registers `before`, past it first.

        A watchpoint that the instruction sets off is returned, and the guest stands.
        """
        if self._breakpoints.any_watches:
            return self._past_watched(vcpu, before)
        after = self._instructions.carried_out(before)
        if after is None:
            self._past_by_step(vcpu, before)
        else:
            self._execution.start_after(vcpu, after.written, after.stored)
        return None

    def comes_again(self, address: int, registers: Registers) -> bool:
        """Whether an arrival is one that was reported and whose instruction was not finished then; it is now."""
        return bool(self.unfinished) and self.unfinished.pop((address, identity(registers)), 1) is None

    def step(self, vcpu: int, address: int) -> StopReply:
        """Carry out the instruction at `address`, whatever breakpoint lies on it; the guest stands before and after."""
        here = self._breakpoints.code.get(address)
        if here is None or self._steps_ignore_breakpoints:
            return self._execution.step(vcpu)
        reply = self._execution.step(vcpu, here.removal)
        self._breakpoints.put_back(here)
        return reply

    def _past_watched(self, vcpu: int, before: Registers) -> Stop | None:
        code = self._instructions.code(vcpu, before)
        reply = self.step(vcpu, before["rip"])
        after = self._execution.registers(vcpu)
        if reply.watch is not None and self._breakpoints.watches(reply.watch):
            return Stop(vcpu, "watchpoint", reply.watch)
        self._finish(vcpu, code, before, after)
        return None

    def _past_by_step(self, vcpu: int, before: Registers) -> None:
        """Two round trips where all goes well: the step, and the registers after it together with the start."""
        execution, address = self._execution, before["rip"]
        code = self._instructions.code(vcpu, before)
        if not self._steps_were_tried:
            after = self._try_step(vcpu, code, before)
            if self._steps_ignore_breakpoints:
                self._finish(vcpu, code, before, after)
                return
        here = self._breakpoints.code[address]
        taken_out = not self._steps_ignore_breakpoints
        execution.step(vcpu, *((here.removal,) if taken_out else ()))
        if is_repeated(code):
            if taken_out:
                self._breakpoints.put_back(here)
            self._finish(vcpu, code, before, execution.registers(vcpu))
            return
        after = execution.start_reading(vcpu, *((here.packet,) if taken_out else ()))
        self._note_unfinished(code, before, after)

    def _try_step(self, vcpu: int, code: bytes, before: Registers) -> Registers:
        """Step until the vCPU has moved, at most a few times: QEMU's TCG ends some steps before the instruction.

        It does not move where this QEMU's steps stop at breakpoints too.
        """
        after = before
        for _ in range(MOST_EMPTY_STEPS):
            self._execution.step(vcpu)
            after = self._execution.registers(vcpu)
            if identity(after) != identity(before):
                self._steps_were_tried = True
                return after
            if stays(code):
                return after
        self._steps_were_tried, self._steps_ignore_breakpoints = True, False
        return after

    def _finish(self, vcpu: int, code: bytes, before: Registers, after: Registers) -> None:
        """Let all run after a pass whose registers are known while the guest is stopped."""
        if is_repeated(code):
            for _ in range(_MOST_REPEATS):  # it is one instruction, however many steps it takes
                if after["rip"] != before["rip"]:
                    break
                self.step(vcpu, before["rip"])
                after = self._execution.registers(vcpu)
        self._note_unfinished(code, before, after)
        self._execution.start()

    def _note_unfinished(self, code: bytes, before: Registers, after: Registers) -> None:
        """Remember an instruction that was not carried out, or went to an exception handler: it will run again.

        TCG ends a step before the instruction when it polls the APIC (CPU_INTERRUPT_POLL is no interrupt that single
        steps hold back); seen once in some thousand steps.
        """
        address = before["rip"]
        if 0 < after["rip"] - address <= LONGEST_INSTRUCTION or goes_to_handler(code):
            return
        if entered_handler(address, before, after) or (identity(after) == identity(before) and not stays(code)):
            if len(self.unfinished) >= _MOST_UNFINISHED:
                self.unfinished.pop(next(iter(self.unfinished)))
            self.unfinished[address, identity(before)] = None
