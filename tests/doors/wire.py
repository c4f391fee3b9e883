"""MQTT 3.1.1 as far as the checks of the doors need it: packets to bytes and back, and frames of WebSocket around them."""

import os
import struct
from collections.abc import Iterator

CONNACK, PUBLISH, PUBACK, SUBACK, PINGRESP = 0x20, 0x30, 0x40, 0x90, 0xD0

UPGRADE = (
    "GET /mqtt HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n"
).encode()


def varint(n: int) -> bytes:
    """A length as MQTT writes it."""
    out = bytearray()
    while True:
        n, digit = n >> 7, n & 0x7F
        out.append(digit | (0x80 if n else 0))
        if not n:
            return bytes(out)


def text(value: str | bytes) -> bytes:
    """A string with its length before it."""
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("!H", len(data)) + data


def packet(first: int, body: bytes) -> bytes:
    """A whole packet."""
    return bytes([first]) + varint(len(body)) + body


def connect(client: str, user: str = "", password: str | bytes = "", keep_alive: int = 0, clean: bool = True) -> bytes:
    """A CONNECT packet."""
    flags = (0x02 if clean else 0) | (0xC0 if user else 0)
    body = text("MQTT") + bytes([4, flags]) + struct.pack("!H", keep_alive) + text(client)
    if user:
        body += text(user) + text(password)
    return packet(0x10, body)


def subscribe(packet_id: int, topic_filter: str, qos: int) -> bytes:
    """A SUBSCRIBE packet with one filter."""
    return packet(0x82, struct.pack("!H", packet_id) + text(topic_filter) + bytes([qos]))


def publish(topic: str, payload: bytes, qos: int = 0, packet_id: int = 0) -> bytes:
    """A PUBLISH packet."""
    identifier = struct.pack("!H", packet_id) if qos else b""
    return packet(PUBLISH | qos << 1, text(topic) + identifier + payload)


def puback(packet_id: int) -> bytes:
    """The acknowledgement of a QoS 1 message."""
    return struct.pack("!BBH", PUBACK, 2, packet_id)


DISCONNECT = b"\xe0\x00"


class Packets:
    """Cuts what arrives into packets."""

    def __init__(self) -> None:
        self.rest = b""

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """The first byte and the body of each packet that is complete now."""
        data = self.rest + data
        at = 0
        while (head := _header(data, at)) is not None:
            length, size = head
            end = at + size + length
            if end > len(data):
                break
            yield data[at], data[at + size : end]
            at = end
        self.rest = data[at:]


def _header(data: bytes, at: int) -> tuple[int, int] | None:
    """The length of a packet's body, and that of the header before it; `None` = more has to come."""
    length = 0
    for n in range(4):
        if at + 1 + n >= len(data):
            return None
        digit = data[at + 1 + n]
        length |= (digit & 0x7F) << 7 * n
        if not digit & 0x80:
            return length, n + 2
    raise ValueError("no length of MQTT")


def message(first: int, body: bytes) -> tuple[str, bytes, int]:
    """Topic, payload and packet identifier of a PUBLISH packet; 0 = it has none."""
    size = struct.unpack_from("!H", body)[0]
    at = 2 + size
    identifier = 0
    if first & 0x06:
        identifier = struct.unpack_from("!H", body, at)[0]
        at += 2
    return body[2 : 2 + size].decode(), body[at:], identifier


def frame(data: bytes) -> bytes:
    """A binary frame of WebSocket, masked as a client's has to be."""
    size = len(data)
    if size < 126:
        head = bytes([0x82, 0x80 | size])
    elif size < 1 << 16:
        head = struct.pack("!BBH", 0x82, 0xFE, size)
    else:
        head = struct.pack("!BBQ", 0x82, 0xFF, size)
    mask = os.urandom(4)
    masked = int.from_bytes(data, "big") ^ int.from_bytes((mask * (size // 4 + 1))[:size], "big")
    return head + mask + masked.to_bytes(size, "big")


class Frames:
    """Takes the payload out of a server's answer to the upgrade and the frames behind it."""

    def __init__(self) -> None:
        self.rest = b""
        self.open = False

    def feed(self, data: bytes) -> bytes:
        """The bytes of MQTT that are complete now. Raises if the server does not upgrade, or closes."""
        self.rest += data
        if not self.open:
            head, end, rest = self.rest.partition(b"\r\n\r\n")
            if not end:
                return b""
            if b" 101 " not in head.split(b"\r\n", 1)[0]:
                raise ConnectionError(head.split(b"\r\n", 1)[0].decode("latin-1"))
            self.open, self.rest = True, rest
        out = bytearray()
        while (payload := self._next()) is not None:
            out += payload
        return bytes(out)

    def _next(self) -> bytes | None:
        rest = self.rest
        if len(rest) < 2:
            return None
        size, at = rest[1] & 0x7F, 2
        if size > 125:
            wide = 2 if size == 126 else 8
            if len(rest) < 2 + wide:
                return None
            size, at = int.from_bytes(rest[2 : 2 + wide], "big"), 2 + wide
        if len(rest) < at + size:
            return None
        if rest[0] & 0x0F == 8:
            raise ConnectionError("the server closes the WebSocket")
        self.rest = rest[at + size :]
        return rest[at : at + size] if rest[0] & 0x08 == 0 else b""
