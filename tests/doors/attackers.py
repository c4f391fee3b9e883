"""Clients that mean harm, one kind for each attack. `attackers.py NAME CONFIG` runs in a process of its own, which has what the broker
leaves of the cores (SCHED_IDLE): attackers have machines of their own, and slow nobody down but by what they send. It goes on for as long as
the configuration says, and prints what came of it as a line of JSON.
"""

import asyncio
import json
import os
import ssl
import sys
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import client
import wire
from flood import flood

ADDRESS = "127.0.0.66"
# 256 MiB, the most that a length of MQTT can say.
HUGE = b"\xff\xff\xff\x7f"
CONNECT_PATIENCE_S = 20
# How often one client with an account announces a packet that is refused.
AGAIN = 20

Config = dict[str, Any]
Work = Coroutine[Any, Any, None]
Attack = Callable[[Config, Counter[str]], Coroutine[Any, Any, None]]


async def hold(port: int, said: bytes, then: bytes, every_s: float, counts: Counter[str], again_s: float) -> None:
    """Keeps a connection: says something, then a byte at a time (of `then`, over and over) or nothing, and comes again when closed."""
    loop = asyncio.get_running_loop()
    while True:
        try:
            sock = await asyncio.wait_for(client.connected_socket(port, ADDRESS), CONNECT_PATIENCE_S)
        except (OSError, asyncio.TimeoutError):
            counts["not_connected"] += 1
            await asyncio.sleep(again_s)
            continue
        counts["opened"] += 1
        try:
            await loop.sock_sendall(sock, said)
            if then:
                dribbling = asyncio.create_task(dribble(sock, then, every_s))
                try:
                    await closed(sock)
                finally:
                    dribbling.cancel()
            else:
                await closed(sock)
            counts["closed"] += 1
        except OSError:
            counts["closed"] += 1
        finally:
            sock.close()
        await asyncio.sleep(again_s)


async def dribble(sock: Any, data: bytes, every_s: float) -> None:
    """A byte at a time, for ever."""
    loop = asyncio.get_running_loop()
    try:
        for n in range(sys.maxsize):
            await asyncio.sleep(every_s)
            await loop.sock_sendall(sock, data[n % len(data) : n % len(data) + 1])
    except OSError:
        pass


async def closed(sock: Any) -> None:
    """Waits until the other side has closed."""
    loop = asyncio.get_running_loop()
    while await loop.sock_recv(sock, 65_536):
        pass


def client_hello() -> bytes:
    """What a client of TLS says first."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="localhost")
    try:
        tls.do_handshake()
    except ssl.SSLWantReadError:
        pass
    return outgoing.read()


async def all_for(seconds: float, work: Sequence[Work]) -> None:
    """Runs all until the time is over."""
    tasks = [asyncio.ensure_future(one) for one in work]
    await asyncio.sleep(seconds)
    # A cancellation that comes together with what a task waits for can be lost, and the task goes on.
    while left := [task for task in tasks if not task.done()]:
        for task in left:
            task.cancel()
        await asyncio.wait(left, timeout=1)
    await asyncio.gather(*tasks, return_exceptions=True)


async def slow(config: Config, counts: Counter[str]) -> None:
    """Connections that send one byte a second, of what each listener wants to hear first."""
    ports = config["ports"]
    connect = wire.connect("attacker-slow", "u" * 60_000, "p" * 60_000)
    request = b"GET /mqtt HTTP/1.1\r\nX: " + b"x" * 60_000
    hello = client_hello()
    kinds = [(ports["tcp"], connect), (ports["tls"], hello), (ports["ws"], request), (ports["wss"], hello)]
    work = []
    for n in range(config["count"]):
        port, data = kinds[n % len(kinds)]
        work.append(hold(port, data[:1], data[1:], 1.0, counts, 1.0))
    await all_for(config["seconds"], work)


async def half_open(config: Config, counts: Counter[str]) -> None:
    """TLS handshakes that stop after the client's first message, or in the midst of it."""
    hello = client_hello()
    said = [hello, hello[: len(hello) // 2]]
    port = config["ports"]["tls"]
    work = [hold(port, said[n % 2], b"", 0, counts, 1.0) for n in range(config["count"])]
    await all_for(config["seconds"], work)


async def upgrades(config: Config, counts: Counter[str]) -> None:
    """Requests for an upgrade without their end."""
    said = wire.UPGRADE[:-2]
    port = config["ports"]["ws"]
    work = [hold(port, said, b"", 0, counts, 2.0) for _ in range(config["count"])]
    await all_for(config["seconds"], work)


async def passwords(config: Config, counts: Counter[str]) -> None:
    """Wrong passwords in ten bursts, half of them for a user that is known."""
    begun = time.monotonic()
    total, bursts = config["count"], 10
    at_once = asyncio.Semaphore(500)
    door = client.Door("tcp", config["ports"]["tcp"])

    async def guess(n: int) -> None:
        user = config["known_user"] if n % 2 else "nobody"
        async with at_once:
            try:
                await client.Client.connect(door, ADDRESS, wire.connect(f"attacker-{n}", user, f"wrong-{n}"))
                counts["let_in"] += 1
            except client.Refused as refused:
                counts[f"connack_{refused.code}"] += 1
                counts["answered"] += 1
            except OSError:
                counts["closed"] += 1

    for burst in range(bursts):
        numbers = range(burst * total // bursts, (burst + 1) * total // bursts)
        await asyncio.gather(*(guess(n) for n in numbers))
        await asyncio.sleep(max(0.0, begun + (burst + 1) * config["seconds"] / bursts - time.monotonic()))


async def huge(config: Config, counts: Counter[str]) -> None:
    """Packets of 256 MiB that are announced: as CONNECT, and as PUBLISH of clients with an account, where that is allowed and where not.
    First one of each, then many, and one of them that comes again and again.
    """
    ports, count, seconds = config["ports"], config["count"], config["seconds"]
    # Their own passwords are not to be refused because too many of one address wait.
    connecting = asyncio.Semaphore(20)

    async def anonymous() -> None:
        await hold(ports["tcp"], b"\x10" + HUGE + wire.text("MQTT") + b"x" * 30_000, b"", 0, counts, 1.0)

    async def account(n: int | str, door: client.Door, key: str) -> None:
        hello = wire.connect(f"attacker-{key}-{n}", config["user"], config["password"])
        try:
            async with connecting:
                opened = await client.Client.connect(door, ADDRESS, hello)
        except (OSError, client.Refused):
            counts[f"{key}_not_let_in"] += 1
            return
        over = asyncio.Event()
        opened.on_lost = over.set
        opened.send(bytes([wire.PUBLISH]) + HUGE + wire.text("huge") + b"x" * 30_000)
        counts[f"{key}_announced"] += 1
        try:
            await over.wait()
            counts[f"{key}_closed"] += 1
        finally:
            opened.close()

    async def again() -> None:
        for _ in range(AGAIN):
            await account("again", client.Door("tcp", ports["tcp"]), "refused")

    def kinds(numbers: range) -> list[Work]:
        work: list[Work] = []
        for n in numbers:
            work += [
                anonymous(),
                account(n, client.Door("tcp", ports["tcp"]), "refused"),
                account(n, client.Door("tcp", ports["large"]), "allowed"),
            ]
        return work

    first = asyncio.create_task(all_for(seconds, kinds(range(1))))
    await asyncio.sleep(seconds / 4)
    await all_for(seconds * 3 / 4, [again(), *kinds(range(1, max(2, count // 3)))])
    await first


ATTACKS: dict[str, Attack] = {
    "slow": slow,
    "passwords": passwords,
    "half_open": half_open,
    "huge": huge,
    "flood": flood,
    "upgrades": upgrades,
}


def main() -> None:
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    client.raise_open_files()
    name, config = sys.argv[1], json.loads(sys.argv[2])
    counts: Counter[str] = Counter()
    asyncio.run(ATTACKS[name](config, counts))
    print(json.dumps(counts), flush=True)


if __name__ == "__main__":
    main()
