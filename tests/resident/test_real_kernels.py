"""What the resident boot needs of a kernel, every real kernel has: its symbols and its types' fields."""

from __future__ import annotations

from pathlib import Path

import pytest

from builder.kernels import kernel, kernel_files
from coldframe.resident.images import QUESTION, VARIABLE
from coldframe.resident.pagingfiles import FUNCTION
from coldframe.resident.verification import _COMMIT
from coldframe.resident.watching import _WRITTEN_EARLY

KERNELS = kernel_files()
SYMBOLS = ("PsInitialSystemProcess", "PsActiveProcessHead", FUNCTION, VARIABLE, QUESTION)


@pytest.mark.skipif(not KERNELS, reason="no ISF files of real kernels")
@pytest.mark.parametrize("path", KERNELS, ids=lambda path: path.name[:8])
def test_a_real_kernel_has_it_all(path: Path) -> None:
    found = kernel(path)
    if found.types.pointer_size == 4:
        pytest.skip("a 32-bit kernel")
    assert not [name for name in SYMBOLS if found.symbols.get(name) is None]
    assert found.types.has_field("_DEVICE_OBJECT", "Characteristics")
    assert found.types.has_field("_EPROCESS", "ActiveProcessLinks")
    commit = [
        found.types.has_field(record, used) if record else found.symbols.get(limit) is not None
        for symbol, record, used, limit in _COMMIT
        if found.symbols.get(symbol) is not None
    ]
    assert commit == [True]
    features = found.types.offset("_KUSER_SHARED_DATA", "ProcessorFeatures")
    written = [
        features + 10,  # PF_XMMI64_INSTRUCTIONS_AVAILABLE
        found.types.offset("_KUSER_SHARED_DATA", "KdDebuggerEnabled"),
        found.types.offset("_KUSER_SHARED_DATA", "NtMajorVersion"),
    ]
    assert all(start <= place < start + 8 for start, place in zip(_WRITTEN_EARLY, written, strict=True))
