"""The bare guest of guest.S, built once, and QEMUs that run it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from coldframe.qemu import VmConfig, launch
from qemu.bare import BareGuest, StartsGuests, wait_until_up

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bare guest as a flat multiboot image."""
    folder = tmp_path_factory.mktemp("bare")
    subprocess.run(
        ["clang", "--target=x86_64-unknown-linux-gnu", "-c", HERE / "guest.S", "-o", folder / "guest.o"], check=True
    )
    subprocess.run(
        [
            "ld.lld",
            "--oformat",
            "binary",
            "-Ttext=0x100000",
            "-e",
            "_start",
            "-o",
            folder / "guest",
            folder / "guest.o",
        ],
        check=True,
    )
    return folder / "guest"


@pytest.fixture
def start(kernel: Path, tmp_path: Path) -> Iterator[StartsGuests]:
    """Starts bare guests and ends them after the test."""
    guests: list[BareGuest] = []

    def start_guest(
        vcpus: int = 1, memory: str = "64M", accelerator: str = "tcg", extra: tuple[str, ...] = (), seconds: float = 60
    ) -> BareGuest:
        qmp = tmp_path / f"{len(guests)}.qmp"
        config = VmConfig(memory, vcpus, accelerator, kernel=str(kernel), qmp=str(qmp), extra=("-no-reboot", *extra))
        guest = BareGuest(launch(config), qmp)
        guests.append(guest)
        wait_until_up(guest, vcpus, seconds)
        return guest

    yield start_guest
    for guest in guests:
        guest.owner.close()
