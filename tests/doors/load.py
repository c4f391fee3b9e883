"""Legitimate clients: publishers and subscribers of QoS 1 at a fixed rate over all kinds of listeners, which measure how long messages
take. Run by `windows.Measured`.

Latency is counted from the write of a message to its receipt, in this one process. How late the process itself was for what it had planned is
told besides: what a busy machine adds to all latencies.
"""

import asyncio
import gc
import json
import ssl
import sys
import time
from typing import Any

import client
import wire
import windows
from report import percentile

RETRY_S = 0.2
# To connect at the beginning: after these something is wrong.
FIRST_TRIES = 3


class Stats:
    """Of one window."""

    def __init__(self) -> None:
        self.latencies: list[int] = []
        self.late: list[int] = []
        self.sent = self.acknowledged = self.repeated = self.disconnected = 0

    def shown(self) -> dict[str, Any]:
        """As JSON; milliseconds."""
        ms = {f"p{part}_ms": percentile(self.latencies, part / 100) / 1e6 for part in (50, 99)}
        return {
            **ms,
            "max_ms": max(self.latencies, default=0) / 1e6,
            "generator_late_p99_ms": percentile(self.late, 0.99) / 1e6,
            "sent": self.sent,
            "acknowledged": self.acknowledged,
            "received": len(self.latencies),
            "repeated": self.repeated,
            "disconnected": self.disconnected,
        }


class Pair:
    """A publisher and a subscriber with a topic of their own."""

    def __init__(self, load: "Load", n: int) -> None:
        self.load = load
        self.topic = f"load/{n}"
        self.door = load.doors[n % len(load.doors)]
        self.n = n
        self.next = 0
        self.seen: set[int] = set()
        self.publisher: client.Client | None = None

    async def open(self, role: str, tries: int = sys.maxsize) -> client.Client:
        """Connects one end, as often as it takes; fails if it does not succeed in so many tries."""
        load = self.load
        clean = role == "publisher"
        # A kept session gets what comes while it is away.
        hello = wire.connect(f"load-{role}-{self.n}", load.user, load.password, 60, clean or not load.persistent)
        for left in reversed(range(tries)):
            try:
                source = f"127.0.1.{1 + self.n % 100}"
                opened = await client.Client.connect(self.door, source, hello, load.tls)
                opened.on_lost = lambda: load.lost(self, role)
                if role == "subscriber":
                    opened.on_packet = lambda first, body: self.received(opened, first, body)
                    await opened.subscribe(self.topic, 1)
                else:
                    opened.on_packet = self.answered
                    self.publisher = opened
                return opened
            except (OSError, client.Refused):
                if not left:
                    raise
                await asyncio.sleep(RETRY_S)
        raise AssertionError("no try")

    def received(self, opened: client.Client, first: int, body: bytes) -> None:
        now = time.monotonic_ns()
        if first & 0xF0 != wire.PUBLISH:
            return
        _, payload, identifier = wire.message(first, body)
        sent, number = int(payload[:20]), int(payload[20:40])
        stats = self.load.stats
        if number in self.seen:
            stats.repeated += 1
        else:
            self.seen.add(number)
            self.load.got += 1
            stats.latencies.append(now - sent)
        if identifier:
            opened.send(wire.puback(identifier))

    def answered(self, first: int, body: bytes) -> None:
        if first == wire.PUBACK:
            self.load.stats.acknowledged += 1
            self.load.acknowledged += 1

    async def publish(self, rate: float) -> None:
        """Publishes for ever, each message at its time."""
        begun = time.monotonic() + self.n / rate / 10
        for number in range(sys.maxsize):
            due = begun + number / rate
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            stats = self.load.stats
            stats.late.append(max(0, time.monotonic_ns() - int(due * 1e9)))
            publisher = self.publisher
            if publisher is None:
                continue
            payload = f"{time.monotonic_ns():020}{number:020}".encode() + b"." * 24
            publisher.send(wire.publish(self.topic, payload, 1, number % 65_535 + 1))
            stats.sent += 1


class Load:
    """All of them."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.user, self.password = config["user"], config["password"]
        self.doors = [client.Door(kind, port) for kind, port in config["doors"]]
        self.tls: ssl.SSLContext = client.trusting(config["ca"])
        self.persistent: bool = config["persistent"]
        self.rate: float = config["rate"]
        self.pairs = [Pair(self, n) for n in range(config["pairs"])]
        self.stats = Stats()
        self.acknowledged = self.got = 0
        self.tasks: set[asyncio.Task[Any]] = set()

    def lost(self, pair: Pair, role: str) -> None:
        """A connection ended: it is opened anew."""
        self.stats.disconnected += 1
        if role == "publisher":
            pair.publisher = None
        self.begin(pair.open(role))

    def begin(self, work: Any) -> None:
        """Goes on with something beside the rest."""
        task = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def run(self) -> None:
        """Connects all and begins to publish."""
        await asyncio.gather(*(pair.open("subscriber", FIRST_TRIES) for pair in self.pairs))
        await asyncio.gather(*(pair.open("publisher", FIRST_TRIES) for pair in self.pairs))
        for pair in self.pairs:
            self.begin(pair.publish(self.rate))

    def cut(self) -> dict[str, Any]:
        """Ends a window. What was acknowledged and has not come is on its way, or lost."""
        shown, self.stats = self.stats.shown(), Stats()
        gc.collect()
        return shown | {"missing": self.acknowledged - self.got}


async def main() -> None:
    load = Load(json.loads(sys.argv[1]))
    gc.freeze()
    gc.disable()
    await windows.serve(load.cut, load.run)


if __name__ == "__main__":
    asyncio.run(main())
