"""Fixtures of the paging tests."""

from __future__ import annotations

import pytest

from coldframe.memory import PhysicalMemory, Run


@pytest.fixture
def empty_memory() -> PhysicalMemory:
    return PhysicalMemory([Run(0, 4096, memoryview(bytearray(4096)))])
