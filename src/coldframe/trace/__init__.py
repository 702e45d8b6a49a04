"""Tracers built on breakpoints: calls of functions as plain data, and what they wrote to files."""

from coldframe.trace.decode import Value
from coldframe.trace.events import event, trace
from coldframe.trace.files import FileWrites, Write, write_of
from coldframe.trace.show import argument_lines, argument_text

__all__ = ["FileWrites", "Value", "Write", "argument_lines", "argument_text", "event", "trace", "write_of"]
