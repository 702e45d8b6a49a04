"""minint, the miniature NT guest: built from the source tree's `guest/`, started in QEMU, asked for its ground truth.

For practice without a Windows VM, for the demo and for tests. `start` builds what is missing (under `build/minint`),
makes a disk and boots; the guest lives as long as the context manager.
"""

from coldframe.minint.machine import Minint, start
from coldframe.minint.truth import Truth, TruthPage, Write

__all__ = ["Minint", "Truth", "TruthPage", "Write", "start"]
