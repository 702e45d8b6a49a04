"""Layouts of Windows' software PTEs, read from the kernel's own type information.

Bits have moved over the years (`PageFileLow` from 1-4 to 12-15, a transition PTE's `PageFrameNumber` from 28 to 36 to
40 bits, `SwizzleBit` came in 2018), so no position is written here: `PteLayout.from_types` asks the kernel's
`_MMPTE_HARDWARE`, `_MMPTE_TRANSITION`, `_MMPTE_PROTOTYPE`, `_MMPTE_SUBSECTION` and `_MMPTE_SOFTWARE`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from coldframe.errors import FormatError, TypeNotFoundError
from coldframe.paging.formats import PAGE_SHIFT
from coldframe.symbols.model import Base, BitField, Record, Types

_HARDWARE = "_MMPTE_HARDWARE"
_TRANSITION = "_MMPTE_TRANSITION"
_PROTOTYPE = "_MMPTE_PROTOTYPE"
_SUBSECTION = "_MMPTE_SUBSECTION"
_SOFTWARE = "_MMPTE_SOFTWARE"
_MEMORY_AREA = "_MEMORY_AREA"  # of ReactOS alone


@dataclass(frozen=True, slots=True)
class Bits:
    """`length` bits of an entry, from bit `position`."""

    position: int
    length: int

    @property
    def mask(self) -> int:
        """The bits, in place."""
        return self.largest << self.position

    @property
    def largest(self) -> int:
        """The value of all bits set."""
        return (1 << self.length) - 1

    def get(self, value: int) -> int:
        """The field's value in an entry."""
        return (value >> self.position) & self.largest


NO_BITS = Bits(0, 0)


@dataclass(frozen=True, slots=True)
class PoolAddresses:
    """Where the pools lie, for 32-bit kernels without PAE, whose PTEs keep addresses relative to them.

    From the kernel's variables `MmPagedPoolStart` (prototype PTEs), `MmSubsectionBase` and `MmNonPagedPoolEnd`
    (subsections, by the PTE's `WhichPool`); None is one that is not known.
    """

    paged_pool_start: int | None
    subsection_base: int | None
    nonpaged_pool_end: int | None


@dataclass(frozen=True, slots=True)
class SplitAddress:
    """A kernel address kept in one field (`low` is empty), or in two as in 32-bit PTEs without PAE.

    `low_shift` and `high_shift` say where the two halves belong, `base` what is added to them: None where that is a
    pool's start (NT 5).
    """

    high: Bits
    low: Bits = NO_BITS
    high_shift: int = 0
    low_shift: int = 0
    base: int | None = 0

    @property
    def is_relative(self) -> bool:
        """Whether this is an offset from a pool's start."""
        return self.base is None

    @property
    def is_split(self) -> bool:
        """Whether it is kept in two fields."""
        return bool(self.low.length)

    def get(self, value: int) -> int:
        """The address (one field: sign-extended to 64 bits where it is wide), or the offset from a pool's start."""
        if self.is_split:
            halves = self.high.get(value) << self.high_shift | self.low.get(value) << self.low_shift
            return halves + (self.base or 0)
        address = self.high.get(value)
        if self.high.length > 32 and address >> (self.high.length - 1):
            address |= (1 << 64) - (1 << self.high.length)
        return address


@dataclass(frozen=True, slots=True)
class PteLayout:
    """Masks and shifts of one kernel's PTEs. Masks are in place; `Bits` know their position.

    `hardware_frame` and `transition_frame` mask physical addresses (a frame number stands at bit 12, so that no shift
    is needed). `swizzle_bit` is 0 in kernels that have none. A prototype PTE's protection stands elsewhere in old
    kernels, and some leave a subsection's out. `pools` is needed by 32-bit kernels without PAE alone. `swap_entries`
    tells of ReactOS, whose swap entries (ntoskrnl/mm/pagefile.c: `ENTRY_FROM_FILE_OFFSET`, shifted by one into a PTE)
    have the transition bit, no protection, and slots that are counted from 1 and stand above that bit, wherever its
    `_MMPTE_SOFTWARE` has PageFileHigh; `vad_marker` is where the types have it.
    """

    entry_size: int
    valid: int
    prototype: int
    transition: int
    swizzle_bit: int
    hardware_frame: int
    transition_frame: int
    writable: int
    copy_on_write: int
    protection: Bits
    prototype_protection: Bits
    subsection_protection: Bits
    page_file_low: Bits
    page_file_high: Bits
    vad_marker: int
    prototype_address_bits: SplitAddress
    subsection_address_bits: SplitAddress
    which_pool: int = 0
    pools: PoolAddresses | None = None
    swap_entries: bool = False

    @classmethod
    def from_types(cls, types: Types) -> PteLayout:
        """The layout of the kernel that `types` are of.

        Raises `TypeNotFoundError` where a structure or a needed field is missing, `FormatError` where one is not what a
        PTE can be (no bit-field, a frame number not at bit 12, bits that disagree between the structures).
        """
        size = _record(types, _HARDWARE).size
        for name in (_TRANSITION, _PROTOTYPE, _SUBSECTION, _SOFTWARE):
            if _record(types, name).size != size:
                raise FormatError(
                    f"{name} is {_record(types, name).size} bytes and {_HARDWARE} {size}: these types are of no kernel"
                )
        if size not in (4, 8):
            raise FormatError(f"{_HARDWARE} is {size} bytes; a page-table entry has 4 or 8")
        writable = _optional(types, _HARDWARE, "Write") or _optional(types, _HARDWARE, "Writable")
        page_file_high, swap_entries = _bits(types, _SOFTWARE, "PageFileHigh"), _MEMORY_AREA in types
        return cls(
            entry_size=size,
            valid=_bits(types, _HARDWARE, "Valid").mask,
            prototype=_agreed(types, "Prototype", (_SOFTWARE, _TRANSITION, _PROTOTYPE, _SUBSECTION)).mask,
            transition=_agreed(types, "Transition", (_SOFTWARE, _TRANSITION)).mask,
            swizzle_bit=(_optional(types, _SOFTWARE, "SwizzleBit") or NO_BITS).mask,
            hardware_frame=_frame(types, _HARDWARE),
            transition_frame=_frame(types, _TRANSITION),
            writable=(writable or NO_BITS).mask,
            copy_on_write=(_optional(types, _HARDWARE, "CopyOnWrite") or NO_BITS).mask,
            protection=_agreed(types, "Protection", (_SOFTWARE, _TRANSITION)),
            prototype_protection=_optional(types, _PROTOTYPE, "Protection") or NO_BITS,
            subsection_protection=_optional(types, _SUBSECTION, "Protection") or NO_BITS,
            page_file_low=_bits(types, _SOFTWARE, "PageFileLow"),
            page_file_high=Bits(PAGE_SHIFT, 8 * size - PAGE_SHIFT) if swap_entries else page_file_high,
            vad_marker=page_file_high.mask,
            prototype_address_bits=_address(types, _PROTOTYPE, "ProtoAddress", align=2, base=0x80000000),
            subsection_address_bits=_address(types, _SUBSECTION, "SubsectionAddress", align=3),
            which_pool=(_optional(types, _SUBSECTION, "WhichPool") or NO_BITS).mask,
            swap_entries=swap_entries,
        )

    @property
    def needs_pools(self) -> bool:
        """Whether PTEs hold addresses relative to the pools."""
        return self.prototype_address_bits.is_relative or self.subsection_address_bits.is_relative

    def with_pools(self, pools: PoolAddresses) -> PteLayout:
        """This layout, with what a 32-bit kernel's relative addresses start from."""
        return replace(self, pools=pools)

    def is_transition(self, value: int) -> bool:
        """Whether an invalid entry names a page that is still in RAM, on the standby or modified list."""
        if value & (self.transition | self.prototype) != self.transition:
            return False
        return not self.swap_entries or bool(value & self.protection.mask)

    def slot(self, value: int) -> int:
        """Which page of its paging file an entry names, the first being 0."""
        return self.page_file_high.get(value) - self.swap_entries

    def is_vad_marker(self, stored: int) -> bool:
        """Whether `stored` (as it stands in the table, and not in transition) says "look in the VAD".

        That is PageFileHigh all ones, `MI_PTE_LOOKUP_NEEDED`. It already has the swizzle mask's bit, so only the
        stored value tells: taking the mask out first would break a marker that was written without SwizzleBit.
        """
        return stored & self.vad_marker == self.vad_marker

    def prototype_address(self, value: int) -> int | None:
        """Kernel-virtual address of the prototype PTE that `value` points to; None without the pools it needs."""
        address = self.prototype_address_bits.get(value)
        if not self.prototype_address_bits.is_relative:
            return address
        start = None if self.pools is None else self.pools.paged_pool_start
        return None if start is None else (start + address) & 0xFFFFFFFF

    def subsection_address(self, value: int) -> int | None:
        """Kernel-virtual address of the `_SUBSECTION` that `value` points to; None without the pools it needs."""
        address = self.subsection_address_bits.get(value)
        if not self.subsection_address_bits.is_relative:
            return address
        if self.pools is None:
            return None
        base, end = self.pools.subsection_base, self.pools.nonpaged_pool_end
        if value & self.which_pool:
            return None if base is None else (base + address) & 0xFFFFFFFF
        return None if end is None else (end - address) & 0xFFFFFFFF


def _record(types: Types, name: str) -> Record:
    found = types.find(name)
    if not isinstance(found, Record):
        raise TypeNotFoundError(
            "structure",
            name,
            hint="page-table entries cannot be read without it: give the symbol file of the kernel itself"
            " (ntkrnlmp.pdb or its kin), with types",
        )
    return found


def _optional(types: Types, name: str, field: str) -> Bits | None:
    record = _record(types, name)
    member = record.fields.get(field)
    if member is None:
        return None
    match member.type:
        case BitField(position=position, length=length):
            pass
        case Base(size=size):  # a whole field such as PageFileHigh may be told as a plain number
            position, length = 0, 8 * size
        case _:
            raise FormatError(f"{name}.{field} is no bit-field")
    position += 8 * member.offset
    if length < 1 or position + length > 8 * record.size:
        raise FormatError(f"{name}.{field} has {length} bits from bit {position} of a record of {record.size} bytes")
    return Bits(position, length)


def _bits(types: Types, name: str, field: str) -> Bits:
    found = _optional(types, name, field)
    if found is None:
        raise TypeNotFoundError(f"field in {name}", field, _record(types, name).fields)
    return found


def _agreed(types: Types, field: str, names: tuple[str, ...]) -> Bits:
    """The bits of `field`, which one test reads before it is known which of these structures the entry is."""
    found = _bits(types, names[0], field)
    for name in names[1:]:
        if _bits(types, name, field) != found:
            raise FormatError(
                f"{field} stands at other bits in {name} than in {names[0]}: these types are of no kernel"
            )
    return found


def _frame(types: Types, name: str) -> int:
    found = _bits(types, name, "PageFrameNumber")
    if found.position != PAGE_SHIFT:
        raise FormatError(
            f"{name}.PageFrameNumber stands at bit {found.position}; processors have it at bit {PAGE_SHIFT}"
        )
    return found.mask


def _address(types: Types, name: str, field: str, *, align: int, base: int = 0) -> SplitAddress:
    """`ProtoAddress` in one field, or `ProtoAddressLow` and `ProtoAddressHigh`.

    In two fields the lower one begins at the bit of the structure's alignment, and the upper one follows it. With
    `WhichPool` (NT 5) together they are an offset from a pool's start (ReactOS, ntoskrnl/mm/ARM3/miarm.h:
    `MiProtoPteToPte`, `MiSubsectionPteToSubsection`). Without it (Vista and 7) they are wide enough for any kernel
    address: 29 bits of a prototype PTE's, above 2 GB (as MemProcFS has it, mm_winx86: `MMWINX86_PTE_PROTOTYPE`), all
    30 of a subsection's that is aligned to four bytes.
    """
    whole = _optional(types, name, field)
    if whole is not None:
        return SplitAddress(whole)
    if _optional(types, name, field + "Low") is None:
        raise TypeNotFoundError(f"field in {name}", field, _record(types, name).fields)
    low, high = _bits(types, name, field + "Low"), _bits(types, name, field + "High")
    if _optional(types, name, "WhichPool") is not None:
        return SplitAddress(high, low, align + low.length, align, None)
    return SplitAddress(high, low, 2 + low.length, 2, base)
