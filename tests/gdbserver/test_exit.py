"""The end of the process that a client debugs."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

import pytest

from coldframe.gdbserver import GdbServer
from coldframe.minint import Minint, start
from coldframe.target import attach
from gdbserver.programs import Client, runs, serving, words_of

pytestmark = pytest.mark.minint


def test_a_process_that_ends_is_told_as_its_exit_and_then_the_machine_ends(tmp_path: Path) -> None:
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
        machine_ends(machine, tmp_path / "gdb.sock")


def machine_ends(machine: Minint, place: Path) -> None:
    """In the middle of a run: the client is told, and the server ends with a line."""
    with serving(words_of(machine), place) as server, Client(place) as client:
        client.ask(b"?")
        client.send(b"c")
        time.sleep(0.3)
        machine.control("quit")
        assert client.receive() == b"X09"
        assert server.wait(60) == 1
        assert server.stderr is not None
        said = server.stderr.read()
    assert "Traceback" not in said
    assert said.splitlines()[-1].startswith("coldframe: ")
