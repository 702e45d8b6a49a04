"""Breakpoints, events, stepping, function arguments and call stacks."""

from coldframe.debug.arguments import Arguments, StackSlots
from coldframe.debug.breakpoint import Breakpoint
from coldframe.debug.calls import Call, Calls
from coldframe.debug.callstack import Frame, StackWalker, callstack, thread_callstack, vcpu_callstack
from coldframe.debug.condition import Condition
from coldframe.debug.events import Event, Events
from coldframe.debug.hit import Hit
from coldframe.debug.live import LiveGuest, attach
from coldframe.debug.modelspecific import MSRS
from coldframe.debug.physical import PhysicalBreakpoint
from coldframe.debug.prototypes import Parameter, Prototype, prototype
from coldframe.debug.running import GuestPausedError

__all__ = [
    "MSRS",
    "Arguments",
    "Breakpoint",
    "Call",
    "Calls",
    "Condition",
    "Event",
    "Events",
    "Frame",
    "GuestPausedError",
    "Hit",
    "LiveGuest",
    "Parameter",
    "PhysicalBreakpoint",
    "Prototype",
    "StackSlots",
    "StackWalker",
    "attach",
    "callstack",
    "prototype",
    "thread_callstack",
    "vcpu_callstack",
]
