"""coldframe looks into a Windows guest from outside: any page of any process, whatever state it is in.

import coldframe

with coldframe.open("memory.elf", symbols=["symbols"]) as guest:  # a memory image
    print([process.name for process in guest.processes])

with coldframe.attach("win10.qmp") as guest:  # a running QEMU
    with guest.break_on("nt!NtWriteFile", process="notepad.exe") as writes:
        for hit in writes:
            print(hit.process, hit.callstack())

with coldframe.boot("win10.qcow2", memory="8G") as guest:  # a boot after which every page is in RAM
    guest.snapshot("resident")
"""

from coldframe.dumping import dump
from coldframe.target import AbsentPagesFrom, attach, boot, open_image, open_target

open = open_image  # noqa: A001 - `coldframe.open` reads as what it does

__all__ = ["AbsentPagesFrom", "attach", "boot", "dump", "open", "open_image", "open_target"]
