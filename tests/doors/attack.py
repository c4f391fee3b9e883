"""Attacks on a broker under a legitimate load: what others notice, what memory it takes, what is counted, and what the log says."""

import argparse
import asyncio
import json
import re
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import client
import wire
from broker import Berth, add_users, machine
from pki import Authority
from report import Report
from windows import Helper, Measured

ATTACKER = "127.0.0.66"
MEMORY_MIB = 1024
# limits.max_arriving_connections, of a run of full scale: its default.
ARRIVING_MAX = 1024
WRITE_TIMEOUT_S = 10
# A p99 below this is fine however short the quiet one is, milliseconds.
FINE_MS = 5.0
FACTOR = 2.0
CONNECT_MAX_MS = 2_000.0
# Between two lines of the log about the same.
SAID_AGAIN_S = 60.0
USERS = {"legit": "legitimate", "mallory": "malicious"}
RULES = """rules:
  - {allow: all, topics: ["load/#"], users: [legit]}
  - {allow: all, topics: ["flood/#", "huge"], users: [mallory]}
"""
CROWD = ['berth_turned_away_total{reason="crowded"}', 'mqtt_errors_total{type="connect_timeout"}']
DECISIONS = [f'berth_auth_decisions_total{{outcome="{o}"}}' for o in ("wrong_password", "unknown_user", "busy")]
# What may be seen of an attack while it lasts.
GAUGES = ["mqtt_connections_active", "berth_arriving_bytes", "berth_password_checks_waiting", "berth_memory_level"]


@dataclass(frozen=True)
class Attack:
    """An attack, what it may cost by docs/limits.md, and what counts it."""

    name: str
    what: str
    count: int
    memory_mib: float
    memory_why: str
    metrics: list[str]
    # Which of the attackers' own figures the metrics have to reach; `` = any number.
    counted: str = "closed"
    extra: list[str] = field(default_factory=list)


ATTACKS = [
    Attack(
        "slow", "connections that send a byte a second", 2000,
        ARRIVING_MAX * 132 / 1024, "limits.max_arriving_connections x (64 KiB of a packet + 68 KiB of a record)", CROWD,
    ),
    Attack(
        "passwords", "wrong passwords", 10_000,
        2 * 19 + 500 * 132 / 1024, "auth.password.parallel x 19 MiB + 500 connections", DECISIONS, "answered",
    ),
    Attack(
        "half_open", "half-open TLS handshakes", 1000,
        ARRIVING_MAX * 132 / 1024, "limits.max_arriving_connections x (68 KiB of a handshake + 64 KiB not taken)", CROWD,
    ),
    Attack(
        "huge", "packets of 256 MiB announced and never sent", 300,
        256 + 32 + 300 * 64 / 1024, "limits.max_arriving_bytes + CONNECTING_BYTES_MAX + 64 KiB of each packet",
        ['mqtt_errors_total{type="packet_too_large"}'], "refused_closed",
        ['berth_connects_refused_total{reason="other"}', 'mqtt_errors_total{type="malformed_packet"}'],
    ),
    Attack(
        "flood", "publishers at full speed, subscribers that read nothing", 2,
        2 * 64 + 64 + 64 + 1, "session.mailbox_bytes of each subscriber + storage.cache + storage.max_pending",
        ['berth_messages_dropped_total{reason="mailbox_full"}', 'berth_messages_dropped_total{reason="queue_full"}'], "",
        ['mqtt_errors_total{type="write_timeout"}', "berth_memory_pauses_total"],
    ),
    Attack(
        "upgrades", "WebSocket upgrades that never finish", 5000,
        ARRIVING_MAX * 132 / 1024, "limits.max_arriving_connections x (8 KiB of a request, at most 132 KiB)", CROWD,
    ),
]  # fmt: skip


@dataclass
class Seen:
    """What was seen in a window."""

    load: dict[str, Any]
    probe: dict[str, Any]
    seconds: float
    before_kib: int
    peak_kib: int
    counted: dict[str, float]
    peaks: dict[str, float]
    log: list[str]
    attackers: dict[str, int] = field(default_factory=dict)
    others_large_ms: float | None = None


class Ground:
    """A broker with its load, and windows in which it is watched."""

    def __init__(self, args: argparse.Namespace, directory: Path) -> None:
        authority = Authority(directory)
        cert, key = authority.server("broker")
        users, rules = directory / "users", directory / "acl.yaml"
        add_users(args.berth, users, USERS)
        rules.write_text(RULES)
        covered = {"cert_file": cert, "key_file": key}
        listeners = {
            "tcp": {},
            "tls": covered,
            "ws": {},
            "wss": covered,
            "large": {"type": "tcp", "max_packet_size": "268435460"},
        }
        options = {
            "auth.password.file": str(users),
            "acl.file": str(rules),
            "limits.memory": f"{MEMORY_MIB}MiB",
            "limits.write_timeout": f"{WRITE_TIMEOUT_S}s",
            # With fewer attackers it is reached as well.
            "limits.max_arriving_connections": str(max(16, int(ARRIVING_MAX * min(1.0, args.scale)))),
        }
        self.berth = Berth(args.berth, listeners, options)
        self.options = options
        ports = self.berth.ports
        doors = [(kind, ports[kind]) for kind in ("tcp", "tls", "ws", "wss")]
        shared = {"user": "legit", "password": USERS["legit"], "ca": authority.ca, "doors": doors}
        self.measured: list[Measured] = []
        try:
            load = {**shared, "pairs": 20, "rate": args.rate / 20, "persistent": args.persistent}
            self.load = self.measure("load.py", load)
            self.probe = self.measure("probe.py", {**shared, "every_s": 0.25})
        except BaseException:
            self.stop()
            raise

    def measure(self, script: str, config: dict[str, Any]) -> Measured:
        """Starts a program that measures beside."""
        self.measured.append(Measured(script, config))
        return self.measured[-1]

    def stop(self) -> None:
        """Ends all."""
        for measured in self.measured:
            measured.end()
        self.berth.stop()

    def watch(self, seconds: float, attack: tuple[str, str] | None = None, large: bool = False) -> Seen:
        """A window of this length, or as long as an attack lasts."""
        berth = self.berth
        self.load.window()
        self.probe.window()
        before = berth.metrics()
        berth.forget_peak()
        before_kib, said = berth.rss_kib(), len(berth.log())
        begun = time.monotonic()
        child = Helper("attackers.py", *attack) if attack else None
        peaks: dict[str, float] = {}
        others = Others(berth.ports["tcp"], seconds) if large else None
        while child.running() if child else time.monotonic() < begun + seconds:
            now = berth.metrics()
            for name in GAUGES:
                peaks[name] = max(peaks.get(name, 0), now.get(name, 0))
            time.sleep(0.5)
        attackers = child.read() if child else {}
        load, probe = self.load.window(), self.probe.window()
        after = berth.metrics()
        counted = {name: after[name] - before.get(name, 0) for name in after if name.partition("{")[0].endswith("_total")}
        return Seen(
            load, probe, time.monotonic() - begun, before_kib, berth.peak_kib(),
            {name: n for name, n in counted.items() if n}, peaks, berth.log()[said:].splitlines(), attackers,
            others.took() if others else None,
        )  # fmt: skip


class Others:
    """Somebody else who publishes a large message in the midst of an attack."""

    def __init__(self, port: int, seconds: float) -> None:
        self.ms: float | None = None
        self.thread = threading.Thread(target=self._publish, args=(port, seconds))
        self.thread.start()

    def _publish(self, port: int, seconds: float) -> None:
        time.sleep(seconds / 2)
        try:
            self.ms = asyncio.run(publish_large(port, seconds / 3))
        except (OSError, client.Refused):
            pass

    def took(self) -> float | None:
        """Milliseconds until it was acknowledged; `None` = it was not."""
        self.thread.join()
        return self.ms


async def publish_large(port: int, patience_s: float) -> float | None:
    """How long somebody else's message of 100 KiB takes until it is acknowledged, milliseconds; `None` = longer than that."""
    hello = wire.connect("large", "legit", USERS["legit"])
    opened = await client.Client.connect(client.Door("tcp", port), "127.0.1.201", hello)
    answered = asyncio.Event()
    opened.on_packet = lambda first, body: answered.set()
    begun = time.monotonic()
    opened.send(wire.publish("load/large", b"l" * 100 * 1024, 1, 1))
    try:
        await asyncio.wait_for(answered.wait(), patience_s)
    except (asyncio.TimeoutError, ConnectionError):
        return None
    finally:
        opened.close()
    return (time.monotonic() - begun) * 1e3


def named(log: list[str]) -> Counter[str]:
    """Lines that name an attacker, by what they say. A client that is named by its identifier is one by itself."""
    found: Counter[str] = Counter()
    for line in log:
        if ATTACKER not in line and "attacker-" not in line:
            continue
        fields = dict(re.findall(r'(\w+)=("[^"]*"|\S+)', line))
        parts = [fields[name] for name in ("listener", "kind", "reason", "cause", "why") if name in fields]
        # What a client's own doing did not bring about is told of each client: that it takes nothing, for one.
        alone = fields.get("cause", "Refused").split("(")[0] not in ("Refused", "DisconnectedWithWill")
        if "client" in fields and (alone or "peer" not in fields):
            parts.append(fields["client"])
        message = re.sub(r"\d+|\w+=(\"[^\"]*\"|\S+)", "", line.split("  ", 1)[-1])
        found[" ".join([*message.split()[-12:], *parts])] += 1
    return found


def judge(report: Report, attack: Attack, seen: Seen, quiet: Seen, full: bool) -> None:
    """Whether what has to hold did."""
    name, load, probe = attack.name, seen.load, seen.probe
    limit = max(FINE_MS, FACTOR * quiet.load["p99_ms"])
    p99 = load["p99_ms"]
    report.bound(
        f"{name}: p99 of others within {FACTOR:.0f}x of quiet, or below {FINE_MS:.0f} ms", p99 <= limit,
        f"{p99:.2f} ms, quiet {quiet.load['p99_ms']:.2f} ms (the generator was late by {load['generator_late_p99_ms']:.2f} ms)",
    )  # fmt: skip
    report.bound(f"{name}: nobody else is disconnected", load["disconnected"] == 0, f"{load['disconnected']} times")
    grown, most = (seen.peak_kib - seen.before_kib) / 1024, seen.peak_kib / 1024
    report.bound(
        f"{name}: memory grows by no more than documented, and stays below limits.memory",
        grown <= attack.memory_mib and most <= MEMORY_MIB,
        f"+{grown:.1f} MiB to {most:.1f}; documented {attack.memory_mib:.0f} ({attack.memory_why}), {MEMORY_MIB}",
    )
    counts = {metric: seen.counted.get(metric, 0) for metric in attack.metrics}
    wanted = seen.attackers.get(attack.counted, 0) if attack.counted else 1
    report.bound(
        f"{name}: attackers are counted", sum(counts.values()) >= max(1, wanted),
        ", ".join(f"{metric} +{n:.0f}" for metric, n in counts.items()) + f"; attackers: {attack.counted or 'any'} {wanted}",
    )  # fmt: skip
    lines = named(seen.log)
    most_lines = 1 + int(seen.seconds / SAID_AGAIN_S)
    often = {what: n for what, n in lines.items() if n > most_lines}
    report.bound(
        f"{name}: the log names attackers, and says each thing once a minute", (bool(lines) or not full) and not often,
        f"{sum(lines.values())} lines of {len(lines)} kinds; {len(seen.log)} lines in all" + (f"; too often: {often}" if often else ""),
    )  # fmt: skip
    slowest = probe["max_ms"]
    report.bound(
        f"{name}: others connect within {CONNECT_MAX_MS / 1e3:.0f} s", slowest <= CONNECT_MAX_MS and not probe["failed"],
        f"{slowest:.0f} ms of {probe['connects']} connects" + (f"; failed: {probe['failed'][:3]}" if probe["failed"] else ""),
    )  # fmt: skip


def shown(seen: Seen) -> list[object]:
    """A row of the table."""
    load, probe = seen.load, seen.probe
    return [
        load["p50_ms"], load["p99_ms"], load["max_ms"], load["generator_late_p99_ms"], load["received"],
        probe["p50_ms"], probe["p99_ms"], probe["max_ms"], seen.before_kib / 1024, seen.peak_kib / 1024, len(seen.log),
        sum(named(seen.log).values()),
    ]  # fmt: skip


HEAD = [
    "window", "p50 ms", "p99 ms", "max ms", "late p99", "messages", "connect p50", "p99", "max", "MiB before", "MiB peak",
    "log lines", "naming",
]  # fmt: skip


def run(args: argparse.Namespace, report: Report) -> None:
    """All attacks, one after another, each after a quiet time."""
    chosen = [a for a in ATTACKS if not args.only or a.name in args.only]
    full = args.scale >= 0.5
    seconds = args.seconds or max(12.0, 30 * args.scale)
    for note in machine():
        report.note(note)
    report.note("attackers have what the broker leaves of the same cores (SCHED_IDLE)")
    with tempfile.TemporaryDirectory(prefix="doors-") as directory:
        ground = Ground(args, Path(directory))
        try:
            report.note(f"options beside the listeners: {ground.options}")
            first = all(measured.first for measured in ground.measured)
            how = "before all others (SCHED_RR), as if on machines of their own" if first else "as any other process: not root"
            report.note(f"the load and the probe run {how}")
            report.note(f"load: {args.rate} messages/s QoS 1, 20 pairs of clients; a connection every 250 ms; over tcp, tls, ws, wss")
            time.sleep(2)
            quiet = ground.watch(seconds)
            rows, windows = [["quiet", *shown(quiet)]], {"quiet": vars(quiet)}
            for attack in chosen:
                begun = time.monotonic()
                report.say(f"{attack.name}: {attack.what}")
                count = max(2, int(attack.count * args.scale))
                config = {
                    "count": count, "seconds": seconds, "ports": ground.berth.ports, "known_user": "legit",
                    "user": "mallory", "password": USERS["mallory"],
                }  # fmt: skip
                seen = ground.watch(seconds, (attack.name, json.dumps(config)), attack.name == "huge")
                judge(report, attack, seen, quiet, full)
                rows.append([f"{attack.name} {count}", *shown(seen)])
                windows[attack.name] = {**vars(seen), "count": count, "named": dict(named(seen.log))}
                del windows[attack.name]["log"]
                extra = {m: seen.counted.get(m, 0) for m in [*attack.metrics, *attack.extra]}
                report.note(f"{attack.name}: attackers saw {seen.attackers}; counted {extra}; at most {seen.peaks}")
                if attack.name == "huge":
                    took = seen.others_large_ms
                    said = f"acknowledged after {took:.0f} ms" if took is not None else "not acknowledged within the attack"
                    report.note(f"huge: a message of 100 KiB of another client meanwhile: {said}")
                time.sleep(3)
                # The log says the same again only after a minute: the next attack is to be named as well.
                rest = begun + SAID_AGAIN_S + 5 - time.monotonic() if full else 3
                after = ground.watch(max(3.0, rest))
                rows.append([f"after {attack.name}", *shown(after)])
                windows[f"after {attack.name}"] = vars(after)
                del windows[f"after {attack.name}"]["log"]
            time.sleep(1)
            missing = ground.load.window()["missing"]
            report.bound("no acknowledged message of others is lost", missing <= 0, f"{max(0, missing)} lost")
            del windows["quiet"]["log"]
            report.table(HEAD, rows)
            report.data["windows"] = windows
            if args.keep_log:
                Path(args.keep_log).write_text(ground.berth.log())
        finally:
            ground.stop()
