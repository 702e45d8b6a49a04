r"""Which volume of which disk a guest's device is: told from what the kernel says of the device, never guessed.

The evidence, each piece of which must fit:

- the device's interface name in `\GLOBAL??`, which has the volume's offset on its disk
  (`STORAGE#Volume#{...}#0000000006500000#{53f5630d-...}`, a link to `\Device\HarddiskVolume3`);
- `\GLOBAL??\Volume{GUID}`, on GPT disks the partition's own GUID: only a match counts, older systems make one up;
- the serial number and the label in the device's VPB, which NTFS took out of the volume's boot sector and $Volume.

Where the guest has none of these, the disks' only NTFS volume is taken, and said to be that.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from coldframe.disk import Blocks, NtfsVolume, Volume, volumes
from coldframe.errors import ColdframeError, FormatError, NotFoundError, UnreadableMemoryError
from coldframe.windows.fileobject import VolumeIdentity

if TYPE_CHECKING:
    from coldframe.windows.guest import Guest

_STORAGE = re.compile(r"storage#volume#.*#([0-9a-f]{16})#\{53f5630d", re.IGNORECASE)
_GUID = re.compile(r"volume\{([0-9a-f-]{36})\}", re.IGNORECASE)
_LETTER = re.compile(r"[A-Z]:", re.IGNORECASE)


@dataclass
class MountedVolume:
    r"""A volume of a disk that a guest's device was found to be.

    `letter` is the drive's (`C:`), else the device's name; `evidence` says by what it was told.
    """

    ntfs: NtfsVolume
    letter: str
    evidence: str

    @property
    def has_letter(self) -> bool:
        """Whether `letter` is one."""
        return not self.letter.startswith("\\")


@dataclass
class _Names:
    """What links in the global namespace say of a device."""

    letter: str = ""
    offsets: list[int] = field(default_factory=list)
    guids: list[str] = field(default_factory=list)


class GuestVolumes:
    """The volumes of a guest on the disks that `disks` gives when it is first asked."""

    def __init__(self, guest: Guest, disks: Callable[[], Sequence[Blocks]]) -> None:
        self._guest = guest
        self._disks = disks
        self._held: Sequence[Blocks] = ()
        self._volumes: list[Volume] | None = None
        self._opened: dict[tuple[str, int], NtfsVolume] = {}
        self._found: dict[VolumeIdentity, MountedVolume] = {}
        self._troubles: list[str] = []
        self._refused: ColdframeError | None = None

    def forget(self) -> None:
        """Read the volumes' file tables anew: the guest has run."""
        self._refused = None
        for volume in self._opened.values():
            volume.forget()

    def close(self) -> None:
        """Let go of the disks."""
        for disk in self._held:
            disk.close()
        self._held = ()

    def of(self, identity: VolumeIdentity) -> MountedVolume:
        """The volume that the guest means; raises `NotFoundError`, `FormatError`, `CapabilityError`."""
        found = self._found.get(identity)
        if found is None:
            found = self._found[identity] = self._find(identity)
        return found

    def all(self) -> list[Volume]:
        """All volumes of all disks; a disk without any that can be told is noted and left out.

        Raises `CapabilityError` where the disks cannot be had; what was raised is kept until `forget`.
        """
        if self._refused is not None:
            raise self._refused
        if self._volumes is None:
            found: list[Volume] = []
            try:
                self._held = self._disks()
                for disk in self._held:
                    try:
                        found += volumes(disk)
                    except FormatError as error:
                        self._troubles.append(str(error))
                        self._guest.warn(str(error))
            except ColdframeError as error:
                self._refused = error
                raise
            self._volumes = found
        return self._volumes

    def _ntfs(self, volume: Volume) -> NtfsVolume:
        key = (volume.disk.name, volume.offset)
        if key not in self._opened:
            self._opened[key] = NtfsVolume(volume)
        return self._opened[key]

    def _find(self, identity: VolumeIdentity) -> MountedVolume:
        names = self._names(identity.name)
        device = identity.name or f"the device at {identity.device:#x}"
        letter = names.letter or identity.name
        left = self.all()
        told: list[str] = []
        if names.offsets:
            left = [volume for volume in left if volume.offset in names.offsets]
            told.append(f"offset {names.offsets[0]:#x}")
        by_guid = [volume for volume in left if volume.guid and volume.guid in names.guids]
        if by_guid:
            left = by_guid
            told.append(f"partition GUID {by_guid[0].guid}")
        readable = self._readable(left)
        if identity.serial:
            readable = [volume for volume in readable if volume.serial & 0xFFFFFFFF == identity.serial]
            told.append(f"serial number {identity.serial:08x}")
        if not told:
            told.append("the only NTFS volume")
        if len(readable) != 1:
            raise NotFoundError(
                "volume",
                f"{letter or device}",
                hint=f"{len(readable)} volumes of the disks fit {device} ({', '.join(told)})" + self._others(left),
            )
        chosen = readable[0]
        if identity.label and chosen.label:
            if identity.label != chosen.label:
                raise FormatError(
                    f"{chosen.name} is called {chosen.label!r}, the guest's {device} {identity.label!r}:"
                    " the disk is another's, or of another time"
                )
            told.append(f"label {chosen.label}")
        return MountedVolume(chosen, letter or device, f"{device} is {chosen.name}, by its {', '.join(told)}")

    def _readable(self, left: list[Volume]) -> list[NtfsVolume]:
        found = []
        for volume in left:
            if volume.holds == "NTFS":
                try:
                    found.append(self._ntfs(volume))
                except FormatError as error:
                    self._guest.warn(str(error))
                    self._troubles.append(str(error))
        return found

    def _others(self, left: list[Volume]) -> str:
        """What else there is, for the error's hint."""
        encrypted = [f"{volume.name} is encrypted by BitLocker" for volume in left if volume.holds == "BitLocker"]
        return "".join(f"; {words}" for words in dict.fromkeys([*encrypted, *self._troubles]))

    def _names(self, device: str) -> _Names:
        """What the links to `device` in the global namespace say."""
        names = _Names()
        if not device:
            return names
        for name, target in self._links():
            if target.lower() != device.lower():
                continue
            if _LETTER.fullmatch(name):
                names.letter = name
            elif match := _STORAGE.match(name):
                names.offsets.append(int(match[1], 16))
            elif match := _GUID.fullmatch(name):
                names.guids.append(match[1].lower())
        return names

    def _links(self) -> list[tuple[str, str]]:
        def read() -> list[tuple[str, str]]:
            try:
                found = self._guest.objects.directory("\\GLOBAL??")
                return [(entry.name, entry.target) for entry in found if entry.target]
            except (NotFoundError, UnreadableMemoryError):
                return []

        return self._guest.once("global links", read)
