"""The resident boot: a Windows guest that boots once so that no page ever leaves RAM.

No paging file is created, images are backed by RAM, memory compression does not start; nothing in the guest's
configuration or on its disk changes. `ResidentBoot` watches and steers the boot of a machine that is paused before its
first instruction; `boot` starts one, does all of it, verifies, and hands over the guest.
"""

from coldframe.resident.booting import ResidentBoot
from coldframe.resident.machines import Machine
from coldframe.resident.phases import BootEvent, BootOptions, Phase
from coldframe.resident.starting import ResidentGuest, boot, restore
from coldframe.resident.verification import Report, verify

__all__ = [
    "BootEvent",
    "BootOptions",
    "Machine",
    "Phase",
    "Report",
    "ResidentBoot",
    "ResidentGuest",
    "boot",
    "restore",
    "verify",
]
