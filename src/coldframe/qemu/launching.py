"""Starting a QEMU of our own, which ends when we end."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field

from coldframe.errors import CapabilityError, ColdframeError, GuestGoneError
from coldframe.qemu.machine import VirtualMachine
from coldframe.qemu.qmp import QmpClient

_PR_SET_PDEATHSIG = 1
_START_TIMEOUT = 60.0


@dataclass(frozen=True, slots=True)
class VmConfig:
    """What `launch` starts: a q35 machine with shared RAM and no devices but those asked for.

    `memory` in QEMU's notation ("512M", "4G"); `qmp` a path at which a second QMP socket is left for others; `extra`
    further QEMU arguments.
    """

    memory: str = "512M"
    vcpus: int = 1
    accelerator: str = "tcg"
    kernel: str | None = None
    initrd: str | None = None
    append: str | None = None
    disks: tuple[str, ...] = ()
    qmp: str | None = None
    paused: bool = False
    binary: str = "qemu-system-x86_64"
    extra: tuple[str, ...] = field(default=())

    def argv(self) -> list[str]:
        """The command line."""
        argv = [self.binary, "-nodefaults", "-display", "none", "-accel", self.accelerator, "-smp", str(self.vcpus),
                "-m", self.memory, "-object", f"memory-backend-memfd,id=ram,size={self.memory},share=on",
                "-machine", "q35,memory-backend=ram"]  # fmt: skip
        for option, value in (("-kernel", self.kernel), ("-initrd", self.initrd), ("-append", self.append)):
            if value is not None:
                argv += [option, value]
        for disk in self.disks:
            argv += ["-drive", f"file={disk},if=virtio"]
        if self.qmp is not None:
            argv += ["-qmp", f"unix:{self.qmp},server=on,wait=off"]
        return [*argv, *(["-S"] if self.paused else []), *self.extra]


def launch(
    config: VmConfig | Sequence[str], *, ram_access: str | None = None, detached: bool = False
) -> VirtualMachine:
    """Start QEMU (a `VmConfig`, or a whole command line) and attach to it; `close` ends it, and so does our death.

    QEMU dies with the thread that called this. `detached` makes it a process of its own instead, which outlives us and
    runs on when it is let go of, also after a kill. Raises `CapabilityError` with QEMU's last words when it does not
    start.
    """
    import tempfile  # noqa: PLC0415 - slow to load; who attaches does without

    argv = config.argv() if isinstance(config, VmConfig) else list(config)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    library = ctypes.CDLL(None)

    def die_with_us() -> None:
        library.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    with tempfile.TemporaryFile() as words, theirs:
        argv += [
            "-chardev",
            f"socket,id=coldframe-qmp,fd={theirs.fileno()}",
            "-mon",
            "chardev=coldframe-qmp,mode=control",
        ]
        try:
            process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=words, stderr=words, pass_fds=[theirs.fileno()],
                preexec_fn=None if detached else die_with_us,  # noqa: PLW1509  (prctl alone runs in the child)
                process_group=None if detached else 0,  # Ctrl-C is for us, who then end it in order
                start_new_session=detached,
            )  # fmt: skip
        except OSError as error:
            ours.close()
            raise CapabilityError(f"cannot start {argv[0]}: {error.strerror}") from None
        theirs.close()

        def end() -> None:
            process.kill()
            process.wait()

        try:
            ours.settimeout(_START_TIMEOUT)
            client = QmpClient(ours, f"QEMU process {process.pid}")
            client.pid = process.pid
            return VirtualMachine(
                client, argv[0], on_close=None if detached else end, ram_access=ram_access, guarded=detached,
                leave_running=detached,
            )  # fmt: skip
        except (ColdframeError, OSError) as error:
            ours.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.5)
            status = process.poll()
            end()
            words.seek(0)
            said = words.read()[-2000:].decode("utf-8", "replace").strip().splitlines()
            if isinstance(error, GuestGoneError) or status is not None:
                raise CapabilityError(
                    f"{os.path.basename(argv[0])} did not start (status {status}): {_last_words(said) or error}"  # noqa: PTH119
                ) from None
            raise
        except BaseException:
            end()
            raise


def _last_words(lines: list[str]) -> str:
    """QEMU's complaint: the last line under its own name, else the last line."""
    own = [line for line in lines if line.startswith("qemu")]
    return (own or lines or [""])[-1]
