"""Does an AMQP 0-9-1 broker answer at this address, and which version is it?

A broker's listener opens at the end of its boot, so an answer to the protocol header means that it is ready. The
version stands in the answer itself, so no credentials are needed to read it.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable

from shared.errors import BrokerUnavailable

PROTOCOL_HEADER = b"AMQP\x00\x00\x09\x01"
CONNECTION_START = struct.pack(">HH", 10, 10)
VERSION_FIELD = b"\x07versionS"  # a short string as name, and the mark of a long string as value
FRAME_BYTES_MAX = 64 * 1024
POLL_S = 0.1


def broker_version(host: str, port: int, timeout_s: float = 3.0) -> str | None:
    """Return the broker's version, an empty text if it does not tell, or None if no broker answers in time."""
    try:
        with socket.create_connection((host, port), timeout=timeout_s) as connection:
            connection.sendall(PROTOCOL_HEADER)
            frame_type, _channel, size = struct.unpack(">BHI", _receive(connection, 7))
            if frame_type != 1 or size > FRAME_BYTES_MAX:
                return None
            payload = _receive(connection, size)
    except OSError:
        return None
    return _version(payload) if payload.startswith(CONNECTION_START) else None


def await_broker(host: str, port: int, *, timeout_s: float, alive: Callable[[], bool]) -> str:
    """Wait until a broker answers and return its version.

    Args:
        alive: asked between attempts; once it says no, waiting is over.

    Raises:
        BrokerUnavailable: nobody answered within `timeout_s`, or the broker's process ended.
    """
    deadline = time.monotonic() + timeout_s
    while (version := broker_version(host, port)) is None:
        if not alive():
            raise BrokerUnavailable("it ended while it was starting")
        if time.monotonic() > deadline:
            raise BrokerUnavailable(f"it did not answer at {host}:{port} within {timeout_s:.0f} s")
        time.sleep(POLL_S)
    return version


def _receive(connection: socket.socket, count: int) -> bytes:
    received = b""
    while len(received) < count:
        part = connection.recv(count - len(received))
        if not part:
            raise ConnectionError("closed in the middle of a frame")
        received += part
    return received


def _version(payload: bytes) -> str:
    at = payload.find(VERSION_FIELD)
    if at < 0:
        return ""
    at += len(VERSION_FIELD)
    (length,) = struct.unpack_from(">I", payload, at)
    return payload[at + 4 : at + 4 + length].decode("utf-8", "replace")
