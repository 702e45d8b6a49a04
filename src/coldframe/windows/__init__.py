"""The Windows in a guest: its kernel, processes, threads, modules, address ranges, objects."""

from coldframe.windows.guest import Guest
from coldframe.windows.kernel import KernelLocation, find_kernel
from coldframe.windows.module import Module
from coldframe.windows.process import Process, Thread
from coldframe.windows.typed import Array, EnumValue, Pointer, Struct, TypedMemory

__all__ = [
    "Array",
    "EnumValue",
    "Guest",
    "KernelLocation",
    "Module",
    "Pointer",
    "Process",
    "Struct",
    "Thread",
    "TypedMemory",
    "find_kernel",
]
