"""Whatever ends the server, the guest runs on with no breakpoint."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from coldframe.minint import Minint, start
from coldframe.target import attach
from gdbserver.programs import Client, runs, serving, words_of, writes_on

pytestmark = pytest.mark.minint

STATUS = {signal.SIGINT: 0, signal.SIGTERM: 128 + signal.SIGTERM, signal.SIGKILL: -signal.SIGKILL}


@pytest.fixture(scope="module")
def machine() -> Iterator[Minint]:
    with start(vcpus=1, options="STATES=0") as running:
        yield running


@pytest.mark.parametrize("number", STATUS, ids=lambda number: number.name)
def test_the_guest_runs_on(machine: Minint, tmp_path: Path, number: signal.Signals) -> None:
    with attach(machine.qmp, symbols=[machine.symbols_folder]) as guest:
        write_file = guest.symbol("nt!NtWriteFile")
    path = tmp_path / "gdb.sock"
    with serving(words_of(machine), path) as server, Client(path) as client:
        client.ask(b"?")
        assert client.ask(b"Z1,%x,1" % (write_file + 1)) == b"OK"  # within an instruction: never hit
        client.send(b"c")
        time.sleep(0.2)
        os.kill(server.pid, number)
        assert server.wait(60) == STATUS[number]
    assert path.exists() == (number == signal.SIGKILL)
    assert runs(machine, 30) and writes_on(machine)
    with serving(words_of(machine), path), Client(path) as client:  # where a server was killed, too
        assert client.ask(b"?").startswith(b"T05")
