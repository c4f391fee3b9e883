"""What the doors cost: memory of idle connections, TLS handshakes, throughput over TLS, connects with accounts. Medians of some rounds."""

import argparse
import json
import secrets
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from broker import Berth, add_users, machine, settled_rss_kib, wait_until
from pki import Authority, openssl, public_key, token_es256, token_hs256
from report import Report, middle, percentile
from throughput import throughput
from windows import Helper

# What an idle TLS connection may take, KiB.
TLS_KIB_MAX = 12.0
IDLE = 5_000
# The part of them, one in so many, that is there before.
FEW = 10
# Fewer say too little about each.
JUDGED = 1_000
HANDSHAKES = 5_000
CONNECT_S = 8.0
# Processes that connect, and connections that each has under way: below auth.password.queue_per_address.
PROCESSES = 2
AT_ONCE = 32
ACTIVE = "mqtt_connections_active"


class Crowd(Helper):
    """`crowd.py` from outside."""

    def __init__(self, name: str, config: dict[str, Any]) -> None:
        super().__init__("crowd.py", name, json.dumps(config))


class Bench:
    """What all measurements need."""

    def __init__(self, args: argparse.Namespace, report: Report, directory: Path) -> None:
        self.args, self.report, self.directory = args, report, directory
        self.authority = Authority(directory)
        self.certs = {"ECDSA P-256": self.authority.server("ec"), "RSA 2048": self.authority.server("rsa", "rsa")}
        self.rounds = range(args.rounds)

    def scaled(self, count: int) -> int:
        """So many, by the scale that was asked for."""
        return max(20, int(count * self.args.scale))

    def covered(self, kind: str = "ECDSA P-256") -> dict[str, str]:
        """Options of a listener with TLS."""
        cert, key = self.certs[kind]
        return {"cert_file": cert, "key_file": key}

    def row(self, part: str, what: str, **values: list[float]) -> dict[str, float]:
        """Keeps what the rounds found; the medians."""
        self.report.data.setdefault(part, {})[what] = values
        return {name: middle(found) for name, found in values.items()}


def idle(bench: Bench) -> None:
    """KiB of each idle connection, with a fresh broker for each round."""
    count, rows = bench.scaled(IDLE), []
    for kind in ("tcp", "tls", "ws", "wss"):
        kib, opened_s = [], []
        for _ in bench.rounds:
            listeners = {kind: bench.covered() if kind in ("tls", "wss") else {}}
            with Berth(bench.args.berth, listeners, {}) as berth:
                config = {"kind": kind, "port": berth.ports[kind], "ca": bench.authority.ca}
                # Some before the others, and beside them: what the first ones set up for all does not count.
                few = Crowd("idle", {**config, "count": count // FEW, "name": "few"})
                few.read()
                before = settled_rss_kib(berth)
                crowd = Crowd("idle", {**config, "count": count, "name": "idle"})
                opened_s.append(count / crowd.read()["seconds"])
                wait_until("all are connected", lambda: berth.metrics()[ACTIVE] == count + count // FEW)
                kib.append((settled_rss_kib(berth) - before) / count)
                crowd.to.close()
                alive = crowd.read()["alive"]
                crowd.end()
                few.end()
                if alive != count:
                    bench.report.bound(f"{kind}: idle connections stay", False, f"{alive} of {count}")
        found = bench.row("idle", kind, kib=kib, opened_per_s=opened_s)
        rows.append([kind, count, found["kib"], ", ".join(f"{k:.2f}" for k in kib), found["opened_per_s"]])
        if kind == "tls" and count >= JUDGED:
            what = f"an idle TLS connection takes less than {TLS_KIB_MAX:.0f} KiB"
            bench.report.bound(what, found["kib"] < TLS_KIB_MAX, f"{found['kib']:.2f} KiB of {count} connections")
    bench.report.table(["idle", "connections", "KiB each", "rounds", "opened/s (generator bound)"], rows)


def handshakes(bench: Bench) -> None:
    """TLS handshakes for each second of the broker's processor time."""
    count, rows = bench.scaled(HANDSHAKES), []
    listeners = {"ec": {"type": "tls", **bench.covered()}, "rsa": {"type": "tls", **bench.covered("RSA 2048")}}
    for name, kind in (("ec", "ECDSA P-256"), ("rsa", "RSA 2048")):
        for resumed in (False, True):
            per_cpu, per_s, ms = [], [], []
            for _ in bench.rounds:
                with Berth(bench.args.berth, listeners, {"auth.allow_anonymous": "true"}) as berth:
                    config = {"port": berth.ports[name], "ca": bench.authority.ca, "resumed": resumed, "count": count // PROCESSES}
                    before, cpu = berth.metrics()["berth_tls_handshakes_total"], berth.cpu_s()
                    crowds = [Crowd("handshakes", config) for _ in range(PROCESSES)]
                    ends = [crowd.read() for crowd in crowds]
                    for crowd in crowds:
                        crowd.end()
                    made = sum(end["handshakes"] for end in ends)
                    seeds = PROCESSES if resumed else 0
                    wait_until("all are counted", lambda: berth.metrics()["berth_tls_handshakes_total"] - before >= made + seeds)
                    used = berth.cpu_s() - cpu
                    wrong = [end for end in ends if end["resumed"] != (end["handshakes"] if resumed else 0)]
                    if wrong:
                        bench.report.bound(f"{kind}: sessions are {'' if resumed else 'not '}resumed", False, str(wrong))
                    per_cpu.append(made / max(used, 0.01))
                    per_s.append(made / max(end["seconds"] for end in ends))
                    ms.append(used / made * 1e3)
            what = f"{kind}, {'resumed' if resumed else 'full'}"
            found = bench.row("handshakes", what, per_cpu_s=per_cpu, per_s=per_s, cpu_ms=ms)
            rows.append([what, count, found["per_cpu_s"], found["cpu_ms"], found["per_s"]])
    bench.report.table(["TLS 1.3 handshakes", "count", "per broker CPU s", "CPU ms each", "per s (generator bound)"], rows)


def accounts(bench: Bench) -> None:
    """Connects a second with a password, and with tokens."""
    args, directory = bench.args, bench.directory
    users = directory / "users"
    add_users(args.berth, users, {"alice": "a password"})
    secret = secrets.token_bytes(32).hex().encode()
    shared = directory / "shared.key"
    shared.write_bytes(secret)
    shared.chmod(0o600)
    signing = str(directory / "signing.key")
    openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", signing)
    public = public_key(signing, directory / "signing.pub")
    kinds: list[tuple[str, dict[str, str], str]] = [
        ("anonymous", {}, ""),
        ("password (argon2id)", {"auth.password.file": str(users)}, "a password"),
        ("JWT HS256", {"auth.jwt.key_file": str(shared)}, token_hs256(secret, "alice")),
        ("JWT ES256", {"auth.jwt.key_file": public}, token_es256(signing, "alice")),
    ]
    rows = []
    seconds = max(2.0, CONNECT_S * args.scale)
    for what, options, password in kinds:
        per_s, per_cpu, p99 = [], [], []
        for _ in bench.rounds:
            with Berth(args.berth, {"tcp": {}}, options) as berth:
                config = {
                    "port": berth.ports["tcp"], "user": "alice" if password else "", "password": password, "seconds": seconds,
                    "at_once": AT_ONCE,
                }  # fmt: skip
                cpu = berth.cpu_s()
                crowds = [Crowd("connects", {**config, "process": n}) for n in range(PROCESSES)]
                ends = [crowd.read() for crowd in crowds]
                used = berth.cpu_s() - cpu
                for crowd in crowds:
                    crowd.end()
                made = sum(end["connects"] for end in ends)
                if failed := sum(end["failed"] for end in ends):
                    bench.report.bound(f"{what}: all are let in", False, f"{failed} of {made + failed} are not")
                per_s.append(sum(end["connects"] / end["seconds"] for end in ends))
                per_cpu.append(made / max(used, 0.01))
                p99.append(percentile([t for end in ends for t in end["took"]], 0.99) * 1e3)
        found = bench.row("accounts", what, per_s=per_s, per_cpu_s=per_cpu, p99_ms=p99)
        rows.append([what, found["per_s"], found["per_cpu_s"], found["p99_ms"]])
    note = f"connects over TCP, {PROCESSES} processes with {AT_ONCE} under way each; all but passwords are bound by the generator"
    bench.report.note(note)
    bench.report.table(["account", "connects/s", "per broker CPU s", "p99 ms"], rows)


def load(bench: Bench) -> None:
    """Throughput over TLS beside plain TCP and beside mosquitto."""
    if not bench.args.mqload:
        bench.report.note("throughput is left out: it needs --mqload PROGRAM")
        return
    throughput(bench.args, bench.report, bench.directory, bench.certs["ECDSA P-256"], bench.row)


PARTS: dict[str, Callable[[Bench], None]] = {"idle": idle, "handshakes": handshakes, "throughput": load, "accounts": accounts}


def run(args: argparse.Namespace, report: Report) -> None:
    """All of it, or what was asked for."""
    for note in machine():
        report.note(note)
    with tempfile.TemporaryDirectory(prefix="doors-") as name:
        bench = Bench(args, report, Path(name))
        for part, work in PARTS.items():
            if not args.only or part in args.only:
                begun = time.monotonic()
                work(bench)
                report.say(f"{part}: {time.monotonic() - begun:.0f} s")
