"""A server of GDB's remote serial protocol: gdb, LLDB and IDA on a process with its whole address space."""

from coldframe.gdbserver.inferior import Inferior, MachineInferior, ProcessInferior, Shown
from coldframe.gdbserver.server import GdbServer, Place, address_of

__all__ = ["GdbServer", "Inferior", "MachineInferior", "Place", "ProcessInferior", "Shown", "address_of"]
