"""Two machines for tests and scenarios, made of two network namespaces that a cable joins. They have names of their own, which
stand for loopback addresses as on many real machines, and share the file system. Needs root and iproute2 on Linux.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

START_S = 90.0
"""How long Ray may take to start on one of them."""
PORT = 6379


def why_not() -> str:
    """Why such machines cannot be made here; "" if they can."""
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("ip") is None or shutil.which("unshare") is None:
        return "needs root, iproute2 and unshare on Linux"
    name = f"sl-try-{os.getpid()}"
    tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if not tried.returncode:
        veth = ["ip", "link", "add", "sltry0", "netns", name, "type", "veth", "peer", "name", "sltry1", "netns", name]
        tried = subprocess.run(veth, capture_output=True, text=True, check=False)
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    return f"cannot make network namespaces: {tried.stderr.strip()}" if tried.returncode else ""


@dataclass
class Command:
    """A command that runs on one of the machines, with what it has printed and when.

    Attributes:
        lines: (seconds since the start, line).
    """

    process: subprocess.Popen[str]
    started: float = field(default_factory=time.monotonic)
    lines: list[tuple[float, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def text(self) -> str:
        """Everything that it has printed."""
        return "\n".join(line for _, line in self.lines)

    def wait(self, seconds: float) -> int:
        """Wait for its end and return its status. One that takes longer is ended, and then this is an error."""
        try:
            status = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.end()
            raise AssertionError(f"it has not ended after {seconds:.0f} s:\n{self.text}") from None
        self._reader.join(1)  # daemons that it started may hold its output open
        return status

    def wait_for(self, words: str, seconds: float) -> float:
        """Wait until it prints these words, and return when that was, in seconds since it started."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for when, line in list(self.lines):
                if words in line:
                    return when
            if self.process.poll() is not None:
                self._reader.join(5)
                if words not in self.text:
                    break
            time.sleep(0.02)
        raise AssertionError(f"it has not printed {words!r}:\n{self.text}")

    def end(self) -> None:
        """End it and all that it started in its session."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._reader.join(5)

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as printed:
            for line in printed:
                self.lines.append((time.monotonic() - self.started, line.rstrip("\n")))


class Host:
    """One of the machines.

    Args:
        space: the name of its network namespace.
        name: its host name, which stands for 127.0.1.1 on it.
        device, address: its end of the cable.
        folder: for what its commands leave, and their home.
    """

    def __init__(self, space: str, name: str, device: str, address: str, folder: Path) -> None:
        self.space, self.name, self.device, self.address, self.folder = space, name, device, address, folder
        self._commands: list[Command] = []

    def start(self, words: Sequence[str], prepare: str = "", **environment: str) -> Command:
        """Start a command on this machine.

        Args:
            prepare: a shell command that runs before it, in the mount namespace that only this command sees.
            environment: variables that differ from this process's.
        """
        script = f'hostname {self.name} && {prepare or "true"} && exec "$@"'
        own = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            "HOME": str(self.folder),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "CUDA_VISIBLE_DEVICES": "",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_memory_monitor_refresh_ms": "0",  # whatever else needs memory on the real machine
            "PYTHONUNBUFFERED": "1",
            **environment,
        }
        process = subprocess.Popen(
            ["ip", "netns", "exec", self.space, "unshare", "--uts", "sh", "-c", script, "sh", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=own,
            start_new_session=True,
        )
        command = Command(process)
        self._commands.append(command)
        return command

    def run(self, words: Sequence[str], seconds: float = START_S, **environment: str) -> str:
        """Run a command to its end, which must be a good one, and return what it printed."""
        command = self.start(words, **environment)
        status = command.wait(seconds)
        assert status == 0, f"{' '.join(words)} on {self.name} ended with status {status}:\n{command.text}"
        return command.text

    def join(self, head: Host, cpus: int, prepare: str = "", dashboard: bool = False, **environment: str) -> None:
        """Start Ray on this machine: the head of a cluster if it is `head`, or else a member of its cluster."""
        folder = head.folder.parent / "ray"  # its sockets have names of at most 107 bytes
        words = [
            "ray",
            "start",
            f"--node-ip-address={self.address}",
            f"--num-cpus={cpus}",
            "--object-store-memory=200000000",
        ]
        if self is head:
            words += [
                "--head",
                f"--port={PORT}",
                f"--include-dashboard={str(dashboard).lower()}",
                f"--dashboard-host={self.address}",  # by default it listens to this machine alone
                f"--temp-dir={folder}",
            ]
        else:
            words += [f"--address={head.address}:{PORT}"]
        command = self.start(words, prepare, **environment)
        assert command.wait(START_S) == 0, f"Ray did not start on {self.name}:\n{command.text}"

    def plug(self, plugged: bool) -> None:
        """Put the cable in, or pull it out."""
        _ip("-n", self.space, "link", "set", self.device, "up" if plugged else "down")

    def slow(self, rate: str) -> None:
        """Limit what this machine sends, such as to "2mbit" per second."""
        limit = [
            "tc",
            "qdisc",
            "replace",
            "dev",
            self.device,
            "root",
            "tbf",
            "rate",
            rate,
            "burst",
            "16kb",
            "latency",
            "400ms",
        ]
        subprocess.run(["ip", "netns", "exec", self.space, *limit], check=True, capture_output=True)

    def fast(self) -> None:
        """Take the limit away."""
        limit = ["tc", "qdisc", "del", "dev", self.device, "root"]
        subprocess.run(["ip", "netns", "exec", self.space, *limit], check=False, capture_output=True)

    def running(self, words: str) -> list[str]:
        """The commands that run on this machine and have these words in them."""
        return [command for _, command in self._processes() if words in command]

    def _processes(self) -> Iterator[tuple[int, str]]:
        """(pid, command) of each process."""
        found = subprocess.run(["ip", "netns", "pids", self.space], capture_output=True, text=True, check=False)
        for pid in found.stdout.split():
            with suppress(OSError):  # it has ended
                command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                yield int(pid), command

    def kill(self, words: str) -> None:
        """Kill the processes of this machine whose command has these words in it."""
        for pid, command in self._processes():
            if words in command:
                os.kill(pid, signal.SIGKILL)

    def wait_for_end(self, words: str, seconds: float) -> float:
        """Wait until nothing runs on this machine that has these words in its command, and return how many seconds that took."""
        started = time.monotonic()
        while left := self.running(words):
            assert time.monotonic() - started < seconds, f"after {seconds:.0f} s there are still: {left}"
            time.sleep(0.2)
        return time.monotonic() - started

    def end_all(self) -> None:
        """End every process that runs on this machine."""
        for _ in range(20):
            found = subprocess.run(["ip", "netns", "pids", self.space], capture_output=True, text=True, check=False)
            pids = [int(pid) for pid in found.stdout.split()]
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if not pids:
                break
            time.sleep(0.1)
        for command in self._commands:
            command.end()
        self._commands.clear()


@contextmanager
def two_hosts(folder: Path) -> Iterator[tuple[Host, Host]]:
    """Make the two machines, 10.77.0.1 and 10.77.0.2, and end all that runs on them with the context.

    Args:
        folder: where each has its home; a short path, because Ray's sockets lie below it.
    """
    tag = str(os.getpid())
    hosts = []
    for number, letter in enumerate("ab", start=1):
        home = folder / letter
        home.mkdir(parents=True, exist_ok=True)
        host = Host(f"sl{letter}{tag}", f"host-{letter}", f"sl{letter}{tag}", f"10.77.0.{number}", home)
        hosts.append(host)
    names = [Path("/etc/netns") / host.space for host in hosts]
    try:
        for host, own in zip(hosts, names, strict=True):
            own.mkdir(parents=True)
            (own / "hosts").write_text(f"127.0.0.1 localhost\n127.0.1.1 {host.name}\n")
            _ip("netns", "add", host.space)
        _ip("link", "add", hosts[0].device, "type", "veth", "peer", "name", hosts[1].device)
        for host in hosts:
            _ip("link", "set", host.device, "netns", host.space)
            _ip("-n", host.space, "addr", "add", f"{host.address}/24", "dev", host.device)
            _ip("-n", host.space, "link", "set", "lo", "up")
            host.plug(True)
        yield hosts[0], hosts[1]
    finally:
        for host, own in zip(hosts, names, strict=True):
            host.end_all()
            subprocess.run(["ip", "netns", "del", host.space], capture_output=True, check=False)
            subprocess.run(["ip", "link", "del", host.device], capture_output=True, check=False)
            shutil.rmtree(own, ignore_errors=True)


def _ip(*words: Any) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(words)}: {done.stderr.strip()}")
