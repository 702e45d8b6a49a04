"""The end of the process that a client debugs."""

from __future__ import annotations

import socket
import threading

import pytest

from coldframe.gdbserver import GdbServer
from coldframe.minint import start
from coldframe.target import attach
from gdbserver.programs import Client, runs

pytestmark = pytest.mark.minint


def test_a_process_that_ends_is_told_as_its_exit() -> None:
    with start(vcpus=2, options="STATES=0 SPAWN=1000 SPAWNPACE=500") as machine:
        with attach(machine.qmp, symbols=[machine.symbols_folder]) as guest:
            process = guest.wait_for_process("brief.exe", timeout=60)
            assert process is not None
            server = GdbServer(guest, process.pid, lambda line, tid: "")
            ours, theirs = socket.socketpair()
            with theirs, Client(ours) as client:
                thread = threading.Thread(target=server.serve_standard, args=(theirs.fileno(), theirs.fileno()))
                thread.start()
                assert client.ask(b"?").startswith(b"T05")
                assert client.ask(b"c") == b"W00"
                assert client.ask(b"D") == b"OK"
                thread.join(30)
                assert not thread.is_alive()
        assert runs(machine)
