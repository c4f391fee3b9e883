"""Many clients of a measurement, in a process of their own: `crowd.py NAME CONFIG` prints what came of it as a line of JSON.

`idle` opens connections and keeps them until its input ends, `connects` opens and closes them one after another and counts, `handshakes` does the
same with nothing but TLS.
"""

import asyncio
import json
import socket
import ssl
import sys
import time
from typing import Any

import client
import wire

# Connections that are being opened at a time.
OPENING = 64


async def idle(config: dict[str, Any]) -> dict[str, Any]:
    """Connections that have done CONNECT, and say nothing more."""
    door, count = client.Door(config["kind"], config["port"]), config["count"]
    tls = client.trusting(config["ca"])
    opening = asyncio.Semaphore(OPENING)

    async def one(n: int) -> client.Client:
        async with opening:
            return await client.Client.connect(door, f"127.0.1.{1 + n % 200}", wire.connect(f"{config['name']}-{n}"), tls)

    begun = time.monotonic()
    opened = await asyncio.gather(*(one(n) for n in range(count)))
    print(json.dumps({"opened": len(opened), "seconds": time.monotonic() - begun}), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    alive = sum(connection.open for connection in opened)
    for connection in opened:
        connection.close()
    return {"alive": alive}


async def connects(config: dict[str, Any]) -> dict[str, Any]:
    """Clients that connect with a password or a token, one after another in each of some tasks, for some seconds."""
    door = client.Door("tcp", config["port"])
    until = time.monotonic() + config["seconds"]
    took: list[float] = []
    failed = 0

    async def again_and_again(task: int) -> None:
        nonlocal failed
        n = 0
        while (begun := time.monotonic()) < until:
            n += 1
            hello = wire.connect(f"connects-{config['process']}-{task}-{n}", config["user"], config["password"])
            try:
                opened = await client.Client.connect(door, f"127.0.1.{1 + config['process']}", hello)
            except (OSError, client.Refused):
                failed += 1
                continue
            took.append(time.monotonic() - begun)
            opened.leave()

    begun = time.monotonic()
    await asyncio.gather(*(again_and_again(n) for n in range(config["at_once"])))
    seconds = time.monotonic() - begun
    return {"connects": len(took), "failed": failed, "seconds": seconds, "took": sorted(took)[:: max(1, len(took) // 1000)]}


async def handshakes(config: dict[str, Any]) -> dict[str, Any]:
    """TLS handshakes of version 1.3, full ones or such that resume a session, one after another."""
    context = client.trusting(config["ca"])
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    session = _session(context, config["port"]) if config["resumed"] else None
    resumed = 0
    begun = time.monotonic()
    for _ in range(config["count"]):
        with socket.create_connection(("127.0.0.1", config["port"])) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            tls = context.wrap_socket(sock, server_hostname="localhost", session=session)
            resumed += bool(tls.session_reused)
            # The end is said, so that the broker has read the client's last message before the connection is gone.
            _farewell(tls)
    return {"handshakes": config["count"], "resumed": resumed, "seconds": time.monotonic() - begun}


def _farewell(tls: ssl.SSLSocket) -> None:
    try:
        tls.unwrap().close()
    except OSError:
        tls.close()


def _session(context: ssl.SSLContext, port: int) -> ssl.SSLSession:
    """A session to resume: its ticket comes with the first bytes that are read."""
    with socket.create_connection(("127.0.0.1", port)) as sock:
        tls = context.wrap_socket(sock, server_hostname="localhost")
        tls.sendall(wire.connect("session"))
        tls.recv(4)
        session = tls.session
        tls.close()
    if session is None or not session.has_ticket:
        raise RuntimeError("the broker gives no ticket")
    return session


WORK = {"idle": idle, "connects": connects, "handshakes": handshakes}

if __name__ == "__main__":
    client.raise_open_files()
    print(json.dumps(asyncio.run(WORK[sys.argv[1]](json.loads(sys.argv[2])))), flush=True)
