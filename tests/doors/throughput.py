"""Throughput over TLS beside plain TCP, of Berth and of mosquitto in turn. The load generator speaks plain TCP only, so HAProxy stands between
it and TLS; as it costs the machine something too, plain TCP is measured both with and without it. Ratios of messages for each second of the
broker's own processor time are the figure of merit.
"""

import argparse
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

from broker import Berth, Process, free_port
from report import Report

WINDOW = "100"
CLIENTS = "20"
PATIENCE_S = 120
PATHS = ("tcp", "tcp by HAProxy", "tls by HAProxy")
Row = Callable[..., dict[str, float]]


def mosquitto(directory: Path, cert: tuple[str, str]) -> tuple[Process, int, int]:
    """A mosquitto with a plain listener and one with TLS."""
    plain, covered = free_port(), free_port()
    config = directory / "mosquitto.conf"
    config.write_text(
        "allow_anonymous true\nset_tcp_nodelay true\nlog_type error\nuser root\nmax_connections -1\n"
        f"listener {plain} 127.0.0.1\nlistener {covered} 127.0.0.1\ncertfile {cert[0]}\nkeyfile {cert[1]}\n"
    )
    process = Process(["mosquitto", "-c", str(config)], directory, "mosquitto")
    process.wait_for([plain, covered])
    return process, plain, covered


def haproxy(directory: Path, ways: dict[str, tuple[int, bool]]) -> tuple[Process, dict[str, int]]:
    """A proxy that leads to ports, over TLS or not; where it listens for each."""
    lines = [
        "global\n nbthread 1\n maxconn 2000\ndefaults\n mode tcp\n timeout connect 5s\n timeout client 1h\n timeout server 1h\n"
    ]
    fronts = {}
    for n, (name, (port, covered)) in enumerate(ways.items()):
        fronts[name] = free_port()
        tls = " ssl verify none" if covered else ""
        lines.append(f"listen way{n}\n bind 127.0.0.1:{fronts[name]}\n server s 127.0.0.1:{port}{tls}\n")
    config = directory / "haproxy.cfg"
    config.write_text("".join(lines))
    process = Process(["haproxy", "-db", "-f", str(config)], directory, "haproxy")
    process.wait_for(list(fronts.values()))
    return process, fronts


def mqload(args: argparse.Namespace, port: int, qos: int, pid: int) -> dict[str, float]:
    """What the load generator says of one run."""
    duration = max(0.5, 3 * args.scale)
    command = [
        args.mqload, "pubsub", "--pub-addrs", f"127.0.0.1:{port}", "--pubs", CLIENTS, "--subs", CLIENTS, "--window", WINDOW,
        "--qos", str(qos), "--warmup", "0.7", "--duration", str(duration), "--broker-pids", str(pid),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    if done.returncode:
        raise RuntimeError(f"mqload: {done.stderr or done.stdout}")
    return json.loads(done.stdout.splitlines()[-1])


def throughput(args: argparse.Namespace, report: Report, directory: Path, cert: tuple[str, str], row: Row) -> None:
    """All of it: brokers and ways in turn, round by round."""
    for command in (["haproxy", "-v"], ["mosquitto", "-h"]):
        report.note(subprocess.run(command, capture_output=True, text=True).stdout.splitlines()[0])
    listeners = {"tcp": {}, "tls": {"cert_file": cert[0], "key_file": cert[1]}}
    started: list[Process] = []
    try:
        with Berth(args.berth, listeners, {}) as berth:
            other, plain, covered = mosquitto(directory, cert)
            started.append(other)
            ways = {
                "Berth tcp by HAProxy": (berth.ports["tcp"], False),
                "Berth tls by HAProxy": (berth.ports["tls"], True),
                "mosquitto tcp by HAProxy": (plain, False),
                "mosquitto tls by HAProxy": (covered, True),
            }
            proxy, fronts = haproxy(directory, ways)
            started.append(proxy)
            fronts |= {"Berth tcp": berth.ports["tcp"], "mosquitto tcp": plain}
            pids = {"Berth": berth.pid, "mosquitto": other.pid}
            found: dict[tuple[str, int], dict[str, list[float]]] = {}
            for _ in range(args.rounds):
                for qos in (0, 1):
                    for path in PATHS:
                        for name, pid in pids.items():
                            run = mqload(args, fronts[f"{name} {path}"], qos, pid)
                            kept = found.setdefault((f"{name} {path}", qos), {"per_s": [], "per_cpu_s": [], "lost": []})
                            kept["per_s"].append(run["msgs_per_s"])
                            kept["per_cpu_s"].append(run.get("msgs_per_cpu_s", 0))
                            kept["lost"].append(run["lost"])
            show(report, found, row)
    finally:
        for process in started:
            process.stop()


def show(report: Report, found: dict[tuple[str, int], dict[str, list[float]]], row: Row) -> None:
    """Medians, and ratios of medians in the same run."""
    medians = {key: row("throughput", f"{key[0]}, QoS {key[1]}", **values) for key, values in found.items()}
    rows = []
    for (what, qos), middle in medians.items():
        name, _, path = what.partition(" ")
        plain = medians[(f"{name} tcp by HAProxy", qos)]
        other = medians[(f"mosquitto {path}", qos)]
        cells = [name, path, qos, middle["per_s"], middle["per_cpu_s"], ratio(middle, plain, "per_s"), ratio(middle, plain, "per_cpu_s")]
        rows.append([*cells, ratio(middle, other, "per_s"), ratio(middle, other, "per_cpu_s"), middle["lost"]])
    head = ["broker", "path", "QoS", "messages/s", "per broker CPU s", "of TCP by HAProxy", "per CPU", "of mosquitto", "per CPU", "lost"]
    report.table(head, sorted(rows, key=lambda r: (r[2], PATHS.index(r[1]), r[0])))


def ratio(one: dict[str, float], other: dict[str, float], name: str) -> float:
    """A ratio; 0 if there is nothing to compare with."""
    return one[name] / other[name] if other[name] else 0.0
