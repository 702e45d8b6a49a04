"""A monitor through libvirt's passthrough (`virsh qemu-monitor-command`), for domains by name. Extra: `libvirt`."""

from __future__ import annotations

from coldframe.errors import CapabilityError
from coldframe.qemu.qmp import Monitor


class LibvirtMonitor:
    """To come."""

    @classmethod
    def connect(cls, domain: str) -> Monitor:
        """Find the domain."""
        raise CapabilityError(f"no such socket, and libvirt domains are not supported yet: {domain}")
