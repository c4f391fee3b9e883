"""A legitimate client that connects again and again, with a password, over one kind of listener after another, and measures the time from
the first packet of TCP to CONNACK. Run by `windows.Measured`. One connection does not wait for the one before.
"""

import asyncio
import itertools
import json
import sys
import time
from typing import Any

import client
import wire
import windows
from report import percentile

# Whoever waits longer has not connected.
PATIENCE_S = 30
SOURCE = "127.0.1.200"


class Probe:
    """See the module."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.doors = [client.Door(kind, port) for kind, port in config["doors"]]
        self.tls = client.trusting(config["ca"])
        self.took: dict[str, list[float]] = {}
        self.failed: list[str] = []
        self.under_way: dict[int, tuple[str, float]] = {}
        self.tasks: set[asyncio.Task[None]] = set()

    async def once(self, n: int, door: client.Door) -> None:
        """Connects, and says how long it took."""
        begun = time.monotonic()
        self.under_way[n] = (door.kind, begun)
        hello = wire.connect(f"probe-{n}", self.config["user"], self.config["password"], 60)
        try:
            opened = await asyncio.wait_for(client.Client.connect(door, SOURCE, hello, self.tls), PATIENCE_S)
            self.took.setdefault(door.kind, []).append(time.monotonic() - begun)
            opened.leave()
        except (OSError, client.Refused, asyncio.TimeoutError) as error:
            self.failed.append(f"{door.kind}: {error!r} after {time.monotonic() - begun:.2f} s")
        finally:
            del self.under_way[n]

    async def tick(self) -> None:
        """Begins a connection at each interval."""
        begun = time.monotonic()
        for n, door in zip(itertools.count(), itertools.cycle(self.doors)):
            await asyncio.sleep(max(0.0, begun + n * self.config["every_s"] - time.monotonic()))
            task = asyncio.create_task(self.once(n, door))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

    async def run(self) -> None:
        """Begins."""
        task = asyncio.create_task(self.tick())
        self.tasks.add(task)
        await asyncio.sleep(0)

    def cut(self) -> dict[str, Any]:
        """Ends a window. Those that wait count with what they have waited."""
        now = time.monotonic()
        waiting = [now - since for _, since in self.under_way.values()]
        everything = [took for kind in self.took.values() for took in kind]
        shown = {
            "connects": len(everything),
            "p50_ms": percentile(everything, 0.5) * 1e3,
            "p99_ms": percentile(everything, 0.99) * 1e3,
            "max_ms": max([*everything, *waiting], default=0) * 1e3,
            "max_ms_by_door": {kind: max(took) * 1e3 for kind, took in self.took.items()},
            "failed": self.failed,
        }
        self.took, self.failed = {}, []
        return shown


async def main() -> None:
    probe = Probe(json.loads(sys.argv[1]))
    await windows.serve(probe.cut, probe.run)


if __name__ == "__main__":
    asyncio.run(main())
