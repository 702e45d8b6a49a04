"""Invalid PTEs as Windows disguises them against L1 Terminal Fault (`MiSwizzleInvalidPte`).

A processor with that flaw speculates through the frame number of an invalid PTE, so Windows sets a physical-address bit
that no RAM has, `InvalidPteMask`. Stored: the bit is set; where the value has it already, SwizzleBit is set too.
Loaded: SwizzleBit clear means that the mask is to be taken out.
"""

from __future__ import annotations

from coldframe.errors import FormatError

_SMALLEST_WIDTH = 36
_LARGEST_WIDTH = 52


def mask_from_physical_bits(bits: int) -> int:
    """`InvalidPteMask` from the *byte* at `nt!KiImplementedPhysicalBits`, for a time before `MiState` is filled in.

    0 and 0xFF (-1) are what a processor without the flaw leaves: no mask. Any other value outside 36 to 52 is no
    width of a physical address, and raises `FormatError`.
    """
    if bits in (0, 0xFF):
        return 0
    if not _SMALLEST_WIDTH <= bits <= _LARGEST_WIDTH:
        raise FormatError(
            f"nt!KiImplementedPhysicalBits is {bits:#x}; expected one byte from {_SMALLEST_WIDTH} to {_LARGEST_WIDTH},"
            " or 0 or 0xff on a processor without L1TF: is the symbol file this kernel's?"
        )
    return 1 << (bits - 1)


def unswizzle(value: int, mask: int, swizzle_bit: int) -> int:
    """The invalid PTE that Windows meant by the stored `value`. `swizzle_bit` is 0 in kernels that have none."""
    if mask and swizzle_bit and not value & swizzle_bit:
        return value & ~mask
    return value
