"""The same laws under KVM (function only: development machines may emulate it slowly)."""

from __future__ import annotations

import os
import time

import pytest

from coldframe.errors import CapabilityError, ColdframeError
from qemu.bare import StartsGuests, unfinished

pytestmark = [
    pytest.mark.kvm,
    pytest.mark.skipif(not os.access("/dev/kvm", os.R_OK | os.W_OK), reason="no /dev/kvm"),
]


@pytest.mark.parametrize("vcpus", [2])
def test_hits_are_as_many_as_the_guest_counts(start: StartsGuests, vcpus: int) -> None:
    try:
        guest = start(vcpus, accelerator="kvm", seconds=120)
    except ColdframeError as error:
        pytest.skip(f"KVM does not run here: {error}")
    guest.pace(10)
    with guest.attach() as vm:
        assert vm.accelerator == "kvm"
        vm.pause()
        before = guest.ticks
        vm.insert_breakpoint(guest.function("tick"))
        began, hit = time.monotonic(), 0
        while hit < 100 and time.monotonic() - began < 20:
            stop = vm.run_until_stop(20)
            assert stop is not None
            assert (stop.reason, stop.address) == ("breakpoint", guest.function("tick"))
            hit += 1
            assert guest.ticks - before == hit - 1 - unfinished(vm)
        assert hit > 10
        with pytest.raises(CapabilityError, match="the processor has four"):
            for number in range(4):
                vm.insert_breakpoint(guest.function("tock") + number)
    assert guest.goes_on(within=5)
