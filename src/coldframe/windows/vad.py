"""Virtual address descriptors: what each range of a process's user addresses is, in the tree of every NT layout.

Where the tree hangs and what its nodes are is told by the types: `_RTL_AVL_TREE` of `_RTL_BALANCED_NODE`s within
`_MMVAD_SHORT` (8.1 to 11), `_MM_AVL_TABLE` of `_MM_AVL_NODE`s (8), of `_MMADDRESS_NODE`s that are the VADs themselves
(Vista, 7, 2003 with service pack), or a plain pointer to an `_MMVAD` with children of its own (NT 5).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, overload

from coldframe.errors import TypeNotFoundError, UnreadableMemoryError
from coldframe.memory import PAGE_SIZE
from coldframe.paging import VadPage, VadRange
from coldframe.symbols.model import Enum, Reference
from coldframe.symbols.model import Pointer as PointerType
from coldframe.windows.typed import Struct, first_field

if TYPE_CHECKING:
    from coldframe.windows.guest import Guest
    from coldframe.windows.process import Process

_MOST_VADS = 1 << 20
_DEEPEST = 64  # an AVL tree of 2^44 nodes, more than there are pages
# The words of `nt!MmProtectToValue`: three bits of access, then cache and guard, as winnt.h names them.
_ACCESS = (
    "PAGE_NOACCESS",
    "PAGE_READONLY",
    "PAGE_EXECUTE",
    "PAGE_EXECUTE_READ",
    "PAGE_READWRITE",
    "PAGE_WRITECOPY",
    "PAGE_EXECUTE_READWRITE",
    "PAGE_EXECUTE_WRITECOPY",
)
_MODIFIERS = ("", "|PAGE_NOCACHE", "|PAGE_GUARD", "|PAGE_WRITECOMBINE")


class Vad:
    """One range: `start` to `end` (the first address behind it), at kernel-virtual `address`.

    `struct` is its `_MMVAD`, or its `_MMVAD_SHORT` where it has no more.
    """

    def __init__(self, guest: Guest, short: Struct) -> None:
        self._guest = guest
        self.short = short
        self.address = short.address
        self.start = _page_number(short, "StartingVpn") * PAGE_SIZE
        self.end = (_page_number(short, "EndingVpn") + 1) * PAGE_SIZE

    def __repr__(self) -> str:
        return f"<Vad {self.start:#x}-{self.end:#x} {self.says}>"

    def __contains__(self, address: object) -> bool:
        return isinstance(address, int) and self.start <= address < self.end

    @property
    def size(self) -> int:
        """How many bytes it covers."""
        return self.end - self.start

    @property
    def private(self) -> bool:
        """Whether the memory is the process's own, not a view of a section."""
        return bool(self.short.integer("u.VadFlags.PrivateMemory"))

    @property
    def struct(self) -> Struct:
        """The `_MMVAD`; the `_MMVAD_SHORT` of private memory, behind which another allocation begins."""
        return self.short if self.private else self._guest.struct("_MMVAD", self.address)

    @property
    def type(self) -> str:
        """The VAD's own type by name (`VadImageMap`), a name of `_MI_VAD_TYPE` where the types have it."""
        if not self.short.has("u.VadFlags.VadType"):  # NT 5.2
            image = self.short.has("u.VadFlags.ImageMap") and self.short.integer("u.VadFlags.ImageMap")
            return "VadImageMap" if image else "VadNone"
        value = self.short.integer("u.VadFlags.VadType")
        enum = self._guest.types.find("_MI_VAD_TYPE")
        names = {constant: name for name, constant in enum.constants.items()} if isinstance(enum, Enum) else _VAD_TYPES
        return names.get(value, str(value))

    @property
    def kind(self) -> str:
        """`Private`, `Mapped` or `Image`, as VirtualQuery's MEM_ types."""
        if self.private:
            return "Private"
        return "Image" if self.type == "VadImageMap" else "Mapped"

    @property
    def protection(self) -> str:
        """The protection that it was made with, in winnt.h's words (`PAGE_EXECUTE_WRITECOPY`)."""
        value = self.short.integer("u.VadFlags.Protection")
        access = _ACCESS[value & 7]
        return access if not value & 7 else access + _MODIFIERS[value >> 3 & 3]

    @property
    def committed(self) -> bool:
        """Whether all of a private range was committed when it was reserved."""
        for path in ("u1.VadFlags1.MemCommit", "u.VadFlags.MemCommit"):
            if self.short.has(path):
                return bool(self.short.integer(path))
        return False

    @property
    def file(self) -> str | None:
        """The file that it maps, as the FILE_OBJECT names it; None for other memory, or a name that is not in RAM."""
        return None if self.private else self._guest.sections.file_of_vad(self.struct)

    @property
    def says(self) -> str:
        """The VAD in words."""
        file = self.file
        return f"{self.kind} {self.protection}{f' {file}' if file else ''}"

    def prototype_pte(self, address: int) -> int | None:
        """Kernel-virtual address of the prototype PTE of the page of `address`; None where it has none."""
        if self.private:
            return None
        return self._guest.sections.prototype_pte(self.struct, (address - self.start) // PAGE_SIZE)


class VadTree(Sequence[Vad]):
    """The VADs of a process, by address; answers paging's question about one page without reading the whole tree."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._guest = process.guest
        self._nodes: dict[int, Vad] = {}
        self._list: list[Vad] | None = None
        self._ranges: list[VadRange] | None = None
        self._epoch = self._guest.resolver.epoch
        types = self._guest.types
        holder = first_field(types, "_MMVAD_SHORT", "VadNode", "LeftChild")
        if holder == "VadNode":
            self._offset, kind = types.field("_MMVAD_SHORT", "VadNode")
            assert isinstance(kind, Reference)
            self._node_type = kind.name
        else:
            self._offset, self._node_type = 0, "_MMVAD_SHORT"
        self._left = first_field(types, self._node_type, "Left", "LeftChild")
        self._right = first_field(types, self._node_type, "Right", "RightChild")

    def root(self) -> int:
        """The address of the root node; 0 where the tree is empty."""
        eprocess = self._process.eprocess
        offset, kind = self._guest.types.field("_EPROCESS", "VadRoot")
        if isinstance(kind, PointerType):
            return eprocess.integer("VadRoot")
        if not isinstance(kind, Reference):
            raise TypeNotFoundError("tree in", "_EPROCESS.VadRoot")
        path = first_field(
            self._guest.types, kind.name, "Root", "BalancedRoot.RightChild", "BalancedRoot.Right", "RightChild"
        )
        return self._guest.struct(kind.name, eprocess.address + offset).integer(path)

    def _fresh(self) -> None:
        """Forget what was read before the guest last ran."""
        if self._epoch != self._guest.resolver.epoch:
            self._nodes.clear()
            self._list = self._ranges = None
            self._epoch = self._guest.resolver.epoch

    def _vad(self, node: int) -> Vad:
        found = self._nodes.get(node)
        if found is None:
            found = self._nodes[node] = Vad(self._guest, self._guest.struct("_MMVAD_SHORT", node - self._offset))
        return found

    def _child(self, node: int, path: str) -> int:
        return self._guest.struct(self._node_type, node).integer(path)

    def find(self, address: int) -> Vad | None:
        """The VAD that holds `address`, or None; raises `UnreadableMemoryError` where a node cannot be read."""
        self._fresh()
        node = self.root()
        for _ in range(_DEEPEST):
            if not node:
                return None
            vad = self._vad(node)
            if address in vad:
                return vad
            node = self._child(node, self._left if address < vad.start else self._right)
        return None

    def vad_page(self, address: int) -> VadPage | None:
        """What the tree says of the page of `address`, for the resolver."""
        vad = self.find(address)
        if vad is None:
            return None
        private, trouble = vad.private, ""
        try:
            prototype_pte = None if private else vad.prototype_pte(address)
        except UnreadableMemoryError as error:
            prototype_pte, trouble = None, str(error)
        return VadPage(vad.address, vad.start, vad.end, private, prototype_pte, lambda: vad.says, trouble)

    def vad_ranges(self) -> list[VadRange]:
        """Each VAD as a range, by address, for the bulk resolver.

        One that cannot be read, or that overlaps those before it (the tree is damaged), is left out and warned of.
        """
        self._fresh()
        if self._ranges is None:
            self._ranges, reached = [], 0
            for vad in self._all():
                try:
                    if not reached <= vad.start < vad.end:
                        self._guest.warn(f"VADs of {self._process!r}: {vad.address:#x} is out of order")
                        continue
                    self._ranges.append(self._range(vad))
                except UnreadableMemoryError as error:
                    self._guest.warn(f"VADs of {self._process!r}: {error}")
                    continue
                reached = vad.end
        return self._ranges

    def _range(self, vad: Vad) -> VadRange:
        private = vad.private
        runs = () if private else self._guest.sections.prototype_runs(vad.struct, vad.size // PAGE_SIZE)
        prototypes = tuple((vad.start + index * PAGE_SIZE, first, count) for index, first, count in runs)
        return VadRange(vad.address, vad.start, vad.end, private, prototypes)

    def _walk(self) -> Iterator[Vad]:
        """In order; a branch that cannot be read is left out and warned of."""
        stack: list[int] = []
        seen: set[int] = set()
        node = self._or_warn(self.root)
        while (stack or node) and len(seen) < _MOST_VADS:
            while node and node not in seen and len(stack) < _DEEPEST:
                seen.add(node)
                stack.append(node)
                node = self._or_warn(partial(self._child, node, self._left))
            if not stack:
                break
            top = stack.pop()
            try:
                yield self._vad(top)
            except UnreadableMemoryError as error:
                self._guest.warn(f"VADs of {self._process!r}: {error}")
            node = self._or_warn(partial(self._child, top, self._right))

    def _or_warn(self, read: Callable[[], int]) -> int:
        try:
            return read()
        except UnreadableMemoryError as error:
            self._guest.warn(f"VADs of {self._process!r}: {error}")
            return 0

    def _all(self) -> list[Vad]:
        self._fresh()
        if self._list is None:
            self._list = list(self._walk())
        return self._list

    def __len__(self) -> int:
        return len(self._all())

    @overload
    def __getitem__(self, index: int) -> Vad: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Vad]: ...
    def __getitem__(self, index: int | slice) -> Vad | Sequence[Vad]:
        return self._all()[index]

    def __repr__(self) -> str:
        return f"<VADs of {self._process!r}>"


_VAD_TYPES = dict(
    enumerate(
        (
            "VadNone",
            "VadDevicePhysicalMemory",
            "VadImageMap",
            "VadAwe",
            "VadWriteWatch",
            "VadLargePages",
            "VadRotatePhysical",
            "VadLargePageSection",
        )
    )
)


def _page_number(short: Struct, name: str) -> int:
    """A virtual page number; since 8.1 its upper byte stands apart."""
    high = f"{name}High"
    return short.integer(name) | (short.integer(high) << 32 if short.has(high) else 0)
