"""QEMU: its monitor, its gdbstub, its guest's RAM; starting, stopping and breaking. Knows nothing of Windows."""

from coldframe.qemu.arrivals import Breakpoint, Stop
from coldframe.qemu.launching import VmConfig, launch
from coldframe.qemu.machine import DescriptorTables, VirtualMachine
from coldframe.qemu.ram import RamRange

__all__ = ["Breakpoint", "DescriptorTables", "RamRange", "Stop", "VirtualMachine", "VmConfig", "launch"]
