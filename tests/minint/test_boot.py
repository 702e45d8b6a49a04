"""minint as a system: it boots like NT, stands still when told to, goes on, and ends."""

from __future__ import annotations

import pytest

from coldframe.minint import start

pytestmark = pytest.mark.minint


@pytest.mark.parametrize(("vcpus", "shadow"), [(1, False), (4, True)], ids=["1-vcpu", "4-vcpus-shadow"])
def test_it_boots_like_nt(vcpus: int, shadow: bool) -> None:
    """Paging file before csrss.exe, each process the child of the one that NT has start it."""
    with start(vcpus=vcpus, kva_shadow=shadow) as machine:
        events = machine.events
    order = [event.get("name", event.get("event")) for event in events]
    assert order.index("smss.exe") < order.index("paging-file") < order.index("csrss.exe") < order.index("services.exe")
    names = {event["pid"]: event["name"] for event in events if event.get("event") == "process"}
    parents = {event["name"]: names.get(event["ppid"]) for event in events if event.get("event") == "process"}
    assert parents["smss.exe"] == "System"
    assert parents["csrss.exe"] == parents["services.exe"] == "smss.exe"
    assert parents["svchost.exe"] == parents["notepad.exe"] == "services.exe"
    assert [event["count"] for event in events if event.get("event") == "processors"] == [vcpus]
    assert {event["user_dtb"] != "0x0" for event in events if event.get("name") == "notepad.exe"} == {shadow}


def test_the_truth_holds_still_until_go() -> None:
    with start(vcpus=4) as machine:
        first = machine.truth()
        assert first.pages == machine.truth().pages  # asked again without having gone on
        machine.go()
        machine.wait_for("write", timeout=20)
