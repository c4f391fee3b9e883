"""A small client over TCP, TLS, WebSocket or secure WebSocket, for asyncio."""

import asyncio
import resource
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass

import wire

# Linux: the port is chosen when the connection is made, so that many may leave one address.
IP_BIND_ADDRESS_NO_PORT = 24


@dataclass(frozen=True)
class Door:
    """A listener as a client sees it."""

    kind: str  # tcp, tls, ws or wss
    port: int

    @property
    def covered(self) -> bool:
        """Whether TLS is spoken there."""
        return self.kind in ("tls", "wss")

    @property
    def framed(self) -> bool:
        """Whether WebSocket is spoken there."""
        return self.kind in ("ws", "wss")


def raise_open_files() -> None:
    """Lets this process have as many connections as the system allows."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def trusting(ca_file: str) -> ssl.SSLContext:
    """TLS as a client of this authority has it."""
    context = ssl.create_default_context(cafile=ca_file)
    # The second one is that of secure WebSocket.
    context.set_alpn_protocols(["mqtt", "http/1.1"])
    return context


def open_socket(source: str) -> socket.socket:
    """A socket that does not wait, of a client at this address."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
    sock.bind((source, 0))
    return sock


async def connected_socket(port: int, source: str) -> socket.socket:
    """A socket that is connected with a port of the broker."""
    sock = open_socket(source)
    try:
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except BaseException:
        sock.close()
        raise
    return sock


class Refused(Exception):
    """A CONNACK that refuses, with its code."""

    def __init__(self, code: int) -> None:
        super().__init__(f"CONNACK {code}")
        self.code = code


class Client(asyncio.Protocol):
    """One connection. What comes after CONNACK goes to `on_packet`; `on_lost` is called when it ends unasked."""

    def __init__(self, door: Door) -> None:
        self.door = door
        self.on_packet: Callable[[int, bytes], None] = lambda first, body: None
        self.on_lost: Callable[[], None] = lambda: None
        self.transport: asyncio.Transport | None = None
        self.packets = wire.Packets()
        self.frames = wire.Frames() if door.framed else None
        self.hello = b""
        self.answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.suback: asyncio.Future[None] | None = None
        self.closing = False

    @staticmethod
    async def connect(door: Door, source: str, hello: bytes, tls: ssl.SSLContext | None = None) -> "Client":
        """Connects and waits for the CONNACK; raises `Refused` if it is none of success, and `OSError` without one."""
        loop = asyncio.get_running_loop()
        sock = await connected_socket(door.port, source)
        client = Client(door)
        client.hello = hello
        context = tls if door.covered else None
        try:
            await loop.create_connection(
                lambda: client, sock=sock, ssl=context, server_hostname="localhost" if context else None
            )
            code = await client.answer
        except BaseException:
            client.close()
            sock.close()
            raise
        if code != 0:
            client.close()
            raise Refused(code)
        return client

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        if self.frames:
            transport.write(wire.UPGRADE)
        else:
            transport.write(self.hello)

    def data_received(self, data: bytes) -> None:
        try:
            if self.frames:
                was_open = self.frames.open
                data = self.frames.feed(data)
                if self.frames.open and not was_open:
                    self.send(self.hello)
            for first, body in self.packets.feed(data):
                self._take(first, body)
        except (ConnectionError, ValueError) as error:
            if not self.answer.done():
                self.answer.set_exception(ConnectionError(str(error)))
            if self.transport:
                self.transport.abort()

    def _take(self, first: int, body: bytes) -> None:
        if first == wire.CONNACK and not self.answer.done():
            self.answer.set_result(body[1])
        elif first == wire.SUBACK and self.suback and not self.suback.done():
            self.suback.set_result(None)
        else:
            self.on_packet(first, body)

    def connection_lost(self, exc: Exception | None) -> None:
        for waiting in (self.answer, self.suback):
            if waiting and not waiting.done():
                waiting.set_exception(ConnectionError("closed"))
                # Whoever waits is told; if nobody does any more, that is no mistake.
                waiting.exception()
        if not self.closing:
            self.on_lost()

    def send(self, data: bytes) -> None:
        """Writes packets."""
        if self.transport:
            self.transport.write(wire.frame(data) if self.frames else data)

    @property
    def open(self) -> bool:
        """Whether the connection is there."""
        return self.transport is not None and not self.transport.is_closing()

    async def subscribe(self, topic_filter: str, qos: int) -> None:
        """Subscribes and waits for the SUBACK."""
        self.suback = asyncio.get_running_loop().create_future()
        self.send(wire.subscribe(1, topic_filter, qos))
        await self.suback

    def close(self) -> None:
        """Ends the connection at once."""
        self.closing = True
        if self.transport:
            self.transport.abort()

    def leave(self) -> None:
        """Says goodbye and ends the connection."""
        self.closing = True
        if self.transport and self.open:
            self.send(wire.DISCONNECT)
            self.transport.close()
