"""One dump of minint a layout, for all the other tools."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import coldframe
from coldframe.minint import start
from outside.dump import Frozen


@pytest.fixture(scope="package", params=["19041", "22000"])
def frozen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Frozen]:
    """A minint that was frozen, asked for its truth and dumped."""
    folder = tmp_path_factory.mktemp(f"dump-{request.param}")
    image, disk = folder / "minint.elf", folder / "minint.qcow2"
    with start(layout=request.param, vcpus=2) as machine:
        truth = machine.write_dump(image, disk=disk)
        with coldframe.open(image, symbols=[machine.symbols_folder]) as guest:
            yield Frozen(image, disk, truth, machine.symbols_folder, guest)
