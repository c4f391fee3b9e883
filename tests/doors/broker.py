"""A broker of one's own: starts it, asks it, and looks at what its process uses."""

import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

PATIENCE_S = 60
TICKS = os.sysconf("SC_CLK_TCK")
# Below those that the system gives to outgoing connections.
PORTS = range(12_000, 32_000)
_next = os.getpid() * 97 % len(PORTS)


def free_port() -> int:
    """A port on loopback that nobody listens on."""
    global _next
    for _ in PORTS:
        _next = (_next + 1) % len(PORTS)
        with socket.socket() as sock:
            try:
                sock.bind(("127.0.0.1", PORTS[_next]))
            except OSError:
                continue
            return PORTS[_next]
    raise RuntimeError("no port is free")


def wait_until(what: str, true: Callable[[], bool], patience_s: float = PATIENCE_S) -> None:
    """Waits for a condition; fails if it does not come true."""
    deadline = time.monotonic() + patience_s
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {patience_s:.0f} s")
        time.sleep(0.05)


def listens(port: int) -> bool:
    """Whether somebody listens on a port of this machine."""
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
        return True
    except OSError:
        return False


class Process:
    """A program that was started here, and what it uses."""

    def __init__(self, command: list[str], directory: Path, name: str) -> None:
        self.name = name
        self.log_file = directory / f"{name}.log"
        with self.log_file.open("wb") as log:
            self.child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=directory)
        self.pid = self.child.pid

    def wait_for(self, ports: list[int]) -> None:
        """Waits until it listens on all of these; ends it if it does not."""

        def serves() -> bool:
            if self.child.poll() is not None:
                raise RuntimeError(f"{self.name} ended: {self.log()}")
            return all(listens(port) for port in ports)

        try:
            wait_until(f"{self.name} serves", serves)
        except BaseException:
            self.stop()
            raise

    def cpu_s(self) -> float:
        """Processor time that it has used."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def _status_kib(self, field: str) -> int:
        text = Path(f"/proc/{self.pid}/status").read_text()
        found = re.search(rf"^{field}:\s+(\d+) kB", text, re.M)
        return int(found[1]) if found else 0

    def rss_kib(self) -> int:
        """Resident memory."""
        return self._status_kib("VmRSS")

    def peak_kib(self) -> int:
        """The most resident memory since `forget_peak`."""
        return self._status_kib("VmHWM")

    def forget_peak(self) -> None:
        """Measures the peak of memory anew from here."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    def log(self) -> str:
        """What it has written."""
        return self.log_file.read_text(errors="replace")

    def stop(self) -> None:
        """Ends it."""
        if self.child.poll() is None:
            self.child.send_signal(signal.SIGTERM)
            try:
                self.child.wait(20)
            except subprocess.TimeoutExpired:
                self.child.kill()
        self.child.wait()


class Berth(Process):
    """A broker with its own directory and ports. `listeners`: options by the listener's name."""

    def __init__(self, program: str, listeners: dict[str, dict[str, str]], options: dict[str, str]) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="berth-doors-"))
        self.http = free_port()
        self.ports = {name: free_port() for name in listeners}
        settings = {"storage.dir": str(self.directory / "data"), "http.address": f"127.0.0.1:{self.http}", **options}
        if "tcp" not in listeners:
            settings["listeners.tcp.enabled"] = "false"
        for name, own in listeners.items():
            settings[f"listeners.{name}.address"] = f"127.0.0.1:{self.ports[name]}"
            settings |= {f"listeners.{name}.{key}": value for key, value in own.items()}
        command = [program, "serve"]
        for key, value in settings.items():
            command += ["--set", f"{key}={value}"]
        self.settings = settings
        super().__init__(command, self.directory, "berth")
        self.wait_for([self.http, *self.ports.values()])

    def metrics(self) -> dict[str, float]:
        """All metrics, by name and labels as they are written."""
        url = f"http://127.0.0.1:{self.http}/metrics"
        with urllib.request.urlopen(url, timeout=PATIENCE_S) as answer:
            lines = answer.read().decode().splitlines()
        pairs = (line.rpartition(" ") for line in lines if line and not line.startswith("#"))
        return {name: float(value) for name, _, value in pairs}

    def stop(self) -> None:
        """Ends it and removes what it had."""
        super().stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> "Berth":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def settled_rss_kib(process: Process) -> int:
    """Resident memory once it has stopped to change."""
    last, same = -1, 0
    for _ in range(100):
        now = process.rss_kib()
        same = same + 1 if abs(now - last) <= 8 else 0
        if same >= 5:
            break
        last = now
        time.sleep(0.2)
    return last


def add_users(program: str, file: Path, users: dict[str, str]) -> None:
    """Writes a file of passwords with the broker's own command."""
    for user, password in users.items():
        command = [program, "passwd", str(file), user]
        subprocess.run(command, input=password.encode() + b"\n", check=True, capture_output=True)


def machine() -> Iterator[str]:
    """What the numbers depend on."""
    model = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    yield f"{os.cpu_count()} cores ({model[1] if model else 'unknown'}), shared by the broker and all clients of the run"

