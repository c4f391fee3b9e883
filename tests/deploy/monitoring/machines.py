"""Starts and ends what the tests run: etcd, brokers, Prometheus, clients. Everything listens on loopback, on free ports."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
DEPLOY = ROOT / "deploy"
BERTH = Path(os.environ.get("BERTH_BIN") or Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target") / "debug/berth").resolve()


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def until(what: str, holds: Callable[[], object], within: float = 30.0):
    """Waits until something holds, and returns what it said. Asks ten times a second."""
    end = time.monotonic() + within
    last: object = None
    while True:
        try:
            last = holds()
            if last:
                return last
        except (OSError, ValueError) as error:
            last = error
        if time.monotonic() > end:
            raise AssertionError(f"not within {within:.0f} s: {what}; last: {last!r}")
        time.sleep(0.1)


def fetch(url: str, within: float = 5.0) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=within) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


class Process:
    """A process with its log; ended by its number, and with it those that it started."""

    def __init__(self, place: Place, name: str, command: list[object], **popen):
        self.name, self.log = name, place.dir / f"{name}.log"
        with open(self.log, "ab") as log:
            self.child = subprocess.Popen(
                [str(c) for c in command], stdout=log, stderr=log, cwd=place.dir, start_new_session=True,
                **{"stdin": subprocess.DEVNULL, **popen},
            )

    def running(self) -> bool:
        return self.child.poll() is None

    def send(self, number: int) -> None:
        if self.running():
            self.child.send_signal(number)

    def end(self, number: int = signal.SIGTERM, within: float = 30.0) -> int:
        self.send(number)
        try:
            return self.child.wait(within)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
            raise AssertionError(f"{self.name} did not end within {within} s of signal {number}") from None

    def said(self) -> str:
        return self.log.read_text(errors="replace")


class Place:
    """A folder for one test, and the processes in it."""

    def __init__(self):
        self.dir = Path(tempfile.mkdtemp(prefix="berth-monitoring-"))
        self.processes: list[Process] = []

    def start(self, name: str, command: list[object], **popen) -> Process:
        process = Process(self, name, command, **popen)
        self.processes.append(process)
        return process

    def close(self) -> None:
        for process in reversed(self.processes):
            if process.running():
                process.send(signal.SIGCONT)
                process.child.kill()
            process.child.wait()
        shutil.rmtree(self.dir, ignore_errors=True)

    def logs(self) -> str:
        return "\n".join(f"--- {p.name}\n{p.said()[-2000:]}" for p in self.processes)


class Etcd:
    """One member."""

    def __init__(self, place: Place, name: str = "etcd-1"):
        self.place, self.name, self.client, peer = place, name, free_port(), free_port()
        self.url, peers = f"http://127.0.0.1:{self.client}", f"http://127.0.0.1:{peer}"
        self.command = [
            "etcd", "--name", name, "--data-dir", place.dir / name, "--logger", "zap",
            "--listen-client-urls", self.url, "--advertise-client-urls", self.url,
            "--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers, "--initial-cluster", f"{name}={peers}",
        ]  # fmt: skip
        self.process = place.start(name, self.command)
        until("etcd is healthy", lambda: fetch(f"{self.url}/health")[0] == 200)

    def ctl(self, *arguments: str, user: str | None = None, input: str | None = None) -> subprocess.CompletedProcess:
        return subprocess.run(
            ["etcdctl", *arguments], env=self.environment(user), input=input, capture_output=True, text=True, timeout=30
        )

    def environment(self, user: str | None = None) -> dict[str, str]:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("ETCDCTL_")}
        own = {"ETCDCTL_API": "3", "ETCDCTL_ENDPOINTS": self.url} | ({"ETCDCTL_USER": user} if user else {})
        return inherited | own


class Broker:
    """A broker with one of the sample configurations, of which it overrides what belongs to the machine."""

    def __init__(self, place: Place, name: str, sample: str, etcd: str | None = None, before: list[object] = [], **options: str):
        self.place, self.name, self.before = place, name, before
        self.mqtt, self.http, self.peer = free_port(), free_port(), free_port()
        self.dir = place.dir / f"{name}-data"
        self.options = {
            "node.id": name,
            "listeners.tcp.address": f"127.0.0.1:{self.mqtt}",
            "http.address": f"127.0.0.1:{self.http}",
            "storage.dir": str(self.dir),
        }
        if etcd:
            self.options |= {
                "cluster.peer_address": f"127.0.0.1:{self.peer}",
                "cluster.advertise_peer": f"127.0.0.1:{self.peer}",
                "cluster.advertise_mqtt": f"127.0.0.1:{self.mqtt}",
                "etcd.endpoints": etcd,
            }
        self.options |= options
        self.config = DEPLOY / "config" / sample
        self.start()

    def start(self) -> None:
        settings = [part for key, value in self.options.items() for part in ("--set", f"{key}={value}")]
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("BERTH_")}
        command = [*self.before, BERTH, "serve", "--config", self.config, *settings]
        self.process = self.place.start(self.name, command, env=inherited)

    def ready(self) -> bool:
        assert self.process.running(), f"{self.name} has ended:\n{self.process.said()[-2000:]}"
        return fetch(f"http://127.0.0.1:{self.http}/ready")[0] == 200

    def wait(self) -> Broker:
        until(f"{self.name} is ready", self.ready, 60)
        return self

    def metrics(self) -> str:
        return fetch(f"http://127.0.0.1:{self.http}/metrics")[1]

    def ctl(self, *arguments: str) -> subprocess.CompletedProcess:
        command = [BERTH, "ctl", "--url", f"http://127.0.0.1:{self.http}", *arguments]
        return subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=30)


class Prometheus:
    """Prometheus with the shipped configuration, but for its targets and its pace."""

    def __init__(self, place: Place, targets: dict[str, list[str]]):
        import yaml

        config = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        known = {scrape["job_name"]: scrape for scrape in config["scrape_configs"]}
        for job, addresses in targets.items():
            if job not in known:
                known[job] = {"job_name": job}
                config["scrape_configs"].append(known[job])
            known[job]["static_configs"] = [{"targets": addresses}]
        folder = place.dir / "prometheus"
        folder.mkdir()
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        shutil.copy(DEPLOY / "prometheus/alerts.yml", folder)
        self.url = f"http://127.0.0.1:{free_port()}"
        self.process = place.start(
            "prometheus",
            ["prometheus", "--config.file", folder / "prometheus.yml", "--storage.tsdb.path", folder / "data",
             "--web.listen-address", self.url.removeprefix("http://"), "--log.level", "warn"],
        )  # fmt: skip
        until("Prometheus is ready", lambda: fetch(f"{self.url}/-/ready")[0] == 200, 60)

    def api(self, path: str, **arguments: str):
        status, body = fetch(f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(arguments)}", 20)
        answer = json.loads(body)
        assert answer["status"] == "success", f"{path} {arguments}: {status} {answer}"
        return answer["data"]

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Labels and values; what is no number is left out."""
        found = self.api("query", query=expression)
        assert found["resultType"] in ("vector", "scalar"), found
        rows = found["result"] if found["resultType"] == "vector" else [{"metric": {}, "value": found["result"]}]
        values = [(row["metric"], float(row["value"][1])) for row in rows]
        return [(labels, value) for labels, value in values if not math.isnan(value)]


def mosquitto(kind: str, port: int, *arguments: str) -> list[str]:
    return [f"mosquitto_{kind}", "-h", "127.0.0.1", "-p", str(port), *arguments]


def run(command: list[object], within: float = 30.0, **more) -> subprocess.CompletedProcess:
    return subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=within, **more)


def python(*arguments: object) -> list[object]:
    return [sys.executable, *arguments]
