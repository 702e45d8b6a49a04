"""A running minint for each module of tests that asks for one, and the guest in it, attached to anew for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from coldframe.debug import LiveGuest
from coldframe.minint import Minint, start
from coldframe.target import attach


@pytest.fixture(scope="module")
def machine(request: pytest.FixtureRequest) -> Iterator[Minint]:
    """A minint with two vCPUs and the module's `OPTIONS`, where `READY` has been logged if the module says so."""
    with start(vcpus=2, options=request.module.OPTIONS) as running:
        ready = getattr(request.module, "READY", None)
        if ready is not None and not any(event.get("event") == ready for event in running.events):
            running.wait_for(ready, timeout=60)
        yield running


@pytest.fixture
def guest(machine: Minint) -> Iterator[LiveGuest]:
    with attach(machine.qmp, symbols=[machine.symbols_folder]) as live:
        yield live
