"""Breakpoints, events, stepping, function arguments and call stacks."""

from coldframe.debug.callstack import Frame, StackWalker, callstack, thread_callstack, vcpu_callstack

__all__ = ["Frame", "StackWalker", "callstack", "thread_callstack", "vcpu_callstack"]
