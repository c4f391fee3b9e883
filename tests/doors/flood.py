"""A publisher at full speed towards subscribers that read nothing, at QoS 0 and at QoS 1."""

import asyncio
import socket
import threading
import time
from collections import Counter
from typing import Any

import wire

ADDRESS = "127.0.0.66"
PAYLOAD = b"f" * 1024
# Messages that are written together; at QoS 1 fewer than may be unacknowledged.
BATCH = 64
PATIENCE_S = 30


def _connected(config: dict[str, Any], name: str, clean: bool) -> socket.socket:
    """A socket of a client that the broker has let in."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    # Small, so that the broker soon has to keep what is for it.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
    sock.bind((ADDRESS, 0))
    sock.settimeout(PATIENCE_S)
    sock.connect(("127.0.0.1", config["ports"]["tcp"]))
    sock.sendall(wire.connect(name, config["user"], config["password"], 0, clean))
    if sock.recv(4, socket.MSG_WAITALL)[3:] != b"\0":
        raise ConnectionError(f"{name} is not let in")
    return sock


def _stopped(config: dict[str, Any], qos: int, until: float, counts: Counter[str], ready: threading.Event) -> None:
    """A subscriber that reads nothing; comes again when the broker has closed."""
    while time.monotonic() < until:
        try:
            with _connected(config, f"attacker-stopped-{qos}", qos == 0) as sock:
                sock.sendall(wire.subscribe(1, f"flood/{qos}", qos))
                sock.recv(5, socket.MSG_WAITALL)
                counts["stopped_connected"] += 1
                ready.set()
                while time.monotonic() < until and _is_open(sock):
                    time.sleep(0.2)
                else:
                    counts["stopped_closed_by_broker"] += time.monotonic() < until
        except OSError:
            counts["stopped_not_let_in"] += 1
            time.sleep(0.5)


def _is_open(sock: socket.socket) -> bool:
    """Whether the system still takes what is said, without taking anything that came: the broker has not reset the connection."""
    # 1 = established, 8 = the other side has closed.
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) == b"\x01"


def _publish(config: dict[str, Any], qos: int, until: float, counts: Counter[str]) -> None:
    """Writes as fast as it is taken."""
    if qos:
        batch = b"".join(wire.publish("flood/1", PAYLOAD, 1, n + 1) for n in range(BATCH))
    else:
        batch = wire.publish("flood/0", PAYLOAD) * BATCH
    while time.monotonic() < until:
        try:
            with _connected(config, f"attacker-flood-{qos}", True) as sock:
                if qos:
                    threading.Thread(target=_drain, args=(sock,), daemon=True).start()
                sock.settimeout(1)
                while time.monotonic() < until:
                    _write(sock, batch, until)
                    counts[f"published_{qos}"] += BATCH
        except OSError:
            counts["publisher_closed"] += 1
            time.sleep(0.2)


def _write(sock: socket.socket, data: bytes, until: float) -> None:
    """Writes all of it, however slowly it is taken."""
    rest = memoryview(data)
    while rest and time.monotonic() < until:
        try:
            rest = rest[sock.send(rest) :]
        except TimeoutError:
            pass


def _drain(sock: socket.socket) -> None:
    """Reads acknowledgements until the connection ends."""
    while True:
        try:
            if not sock.recv(65_536):
                return
        except TimeoutError:
            pass
        except OSError:
            return


async def flood(config: dict[str, Any], counts: Counter[str]) -> None:
    """See the module."""
    until = time.monotonic() + config["seconds"]
    work = []
    for qos in (0, 1):
        ready = threading.Event()
        work.append(threading.Thread(target=_stopped, args=(config, qos, until, counts, ready)))
        work[-1].start()
        await asyncio.to_thread(ready.wait, PATIENCE_S)
        work.append(threading.Thread(target=_publish, args=(config, qos, until, counts)))
        work[-1].start()
    for thread in work:
        await asyncio.to_thread(thread.join)
