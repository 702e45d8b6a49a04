"""The shell: every verb on the open guest, kd's words, and errors of one line that do not end it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest

pytest.importorskip("IPython", reason="needs IPython, the extra shell")

from IPython import get_ipython
from IPython.core.completer import provisionalcompleter

from coldframe.cli.absent import holding_open
from coldframe.cli.magics import VERBS, make_shell
from coldframe.cli.main import run
from coldframe.debug import LiveGuest
from coldframe.minint import Minint, start
from coldframe.target import attach

pytestmark = pytest.mark.minint

Says = Callable[[str], str]


@pytest.fixture(scope="module")
def machine() -> Iterator[Minint]:
    with start(vcpus=2, options="PACE=5") as running:
        yield running


@pytest.fixture
def guest(machine: Minint) -> Iterator[LiveGuest]:
    with attach(machine.qmp, symbols=[machine.symbols_folder]) as live, holding_open(live):
        yield live


@pytest.fixture
def says(machine: Minint, guest: LiveGuest, capsys: pytest.CaptureFixture[str]) -> Iterator[Says]:
    """`says(line)`: what the shell prints for a line, on either stream."""
    shell = make_shell(guest, str(machine.qmp))

    def said(line: str) -> str:
        capsys.readouterr()
        shell.run_cell(line, store_history=False)
        captured = capsys.readouterr()
        return captured.out + captured.err

    yield said
    type(shell).clear_instance()


def test_every_verb_is_a_magic_on_the_open_guest(says: Says, guest: LiveGuest) -> None:
    assert '"notepad.exe"' in says("%ps --json")
    for verb in VERBS:
        assert f"coldframe {verb}" in says(f"%{verb} --help")
    assert "valid" in says("%pte nt!NtWriteFile")
    assert "notepad.exe" in says("%process notepad.exe")
    pid = guest.process("notepad.exe").pid
    assert f'"pid": {pid}' in says("%vads --json")
    assert f'"pid": {pid}' in says("%pte 0x7ffe0000 --json")
    assert f"{pid:#x}" in says("%dt _EPROCESS {process.eprocess.address} UniqueProcessId")
    assert "nt!NtWriteFile" in says("%ln nt!NtWriteFile")


def test_kds_words_stop_the_guest_and_look(says: Says, guest: LiveGuest) -> None:
    says("%process notepad.exe")
    assert "0: nt!NtWriteFile" in says('%bp NtWriteFile --if "Length > 0"')
    hit = says("%g 20")
    assert "nt!NtWriteFile" in hit and "notepad!NpFlushBuffer" in hit
    assert "nt!NtWriteFile+0x0" in says("%k").splitlines()[1]
    assert "nt!NtWriteFile:" in says("%u . 2")
    assert re.search(r"0: nt!NtWriteFile at 0x[0-9a-f]+, \d+ hits", says("%bl"))
    rip = guest.symbol("nt!NtWriteFile")
    assert f"{rip:#018x}" in says("%r rip")
    assert "hit.args" not in says("hit.args[6] > 0")
    assert "fffff" in says("%dq @rsp 16")
    says("%bc *")
    assert not guest.active
    assert says("%bl") == ""
    assert "nt!NtWriteFile" in says("%t") or "+0x" in says("%ln .")


def test_one_stands_on_the_vcpu_that_was_hit_or_stepped(says: Says, guest: LiveGuest) -> None:
    says("%bp NtWriteFile --once")
    assert "nt!NtWriteFile" in says("%g 20")
    assert says("%bl") == ""
    assert "%bp sets one" in says("%g")
    hit = get_ipython().user_ns["hit"]
    before = hit.registers["rip"]
    for _ in range(3):
        says("%t")
        now = guest.registers(hit.vcpu)["rip"]
        assert before < now < before + 16
        assert f"{now:#018x}" in says("%r rip")
        assert says("%u . 1").splitlines()[1].startswith(f"{now:016x}")
        assert "nt!NtWriteFile+" in says("%k").splitlines()[1]
        before = now
    for other in set(range(guest.vcpus)) - {hit.vcpu}:
        says(f"%t {other}")
        assert f"{guest.registers(other)['rip']:#018x}" in says("%r rip")


def test_an_error_is_one_line_and_the_shell_goes_on(says: Says) -> None:
    for line, words in {
        "%bp nt!NtWritFile": "did you mean",
        "%bc 7": "no breakpoint",
        "%g": "%bp sets one",
        "%dq 0x10": None,
        "guest.process('notpad.exe')": "did you mean notepad.exe",
        "%ln nothing!there": "no",
        "%ln nothing": "@register",
        "%r rax=nothing": "@register",
        "%r rax=1<<70": "64 bits",
        "%db @nothing": "no register",
        "%u nt!NtWriteFile many": "INSTRUCTIONS",
        "%db nt!NtWriteFile many": "SIZE",
        "%bc": "NUMBER",
        "%bc x": "NUMBER",
        "%t x": "VCPU",
        "%g soon": "SECONDS",
        "%g -1": "seconds",
        "%bp 'NtWriteFile": "quotation",
        "%ps 'x": "quotation",
    }.items():
        said = says(line)
        assert "Traceback" not in said, line
        assert len(said.splitlines()) == 1, (line, said)
        assert words is None or words in said


def test_names_complete(says: Says, machine: Minint, guest: LiveGuest) -> None:
    def completed(line: str) -> list[str]:
        with provisionalcompleter():
            offered = list(get_ipython().Completer.completions(line, len(line)))
        return [line[: one.start] + one.text for one in offered]

    assert "%bp nt!NtWriteFile" in completed("%bp nt!NtWri")
    assert "%dt _EPROCESS" in completed("%dt _EPRO")
    says("%process notepad.exe")
    assert "%bp notepad!NpFlushBuffer" in completed("%bp notepad!NpFlu")
    assert "process.eprocess.UniqueProcessId" in completed("process.eprocess.UniqueProc")


def test_lines_given_on_the_command_line_are_run(machine: Minint, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["shell", str(machine.qmp), "-s", str(machine.symbols_folder)]
    assert run([*words, "-c", "%process notepad.exe", "-c", "print(process.name, len(process.threads) > 1)"]) == 0
    assert "notepad.exe True" in capsys.readouterr().out
    assert run([*words, "-c", "guest.process('nobody.exe')"]) == 1
    assert "no process 'nobody.exe'" in capsys.readouterr().err
