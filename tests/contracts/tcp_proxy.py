"""A network that can be cut: a TCP proxy whose connections tests reset, stall or refuse."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading

_ABORT = struct.pack("ii", 1, 0)


class TcpProxy:
    """Forwards connections from a port of its own to `target`."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._flows = threading.Event()
        self._flows.set()
        self._admits = True
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._accepting = self._spawn(self._accept)

    def stall(self) -> None:
        """Forward nothing; nobody is told (a cable is pulled)."""
        self._flows.clear()

    def flow(self) -> None:
        """Forward again."""
        self._flows.set()

    def refuse(self) -> None:
        """Turn new connections away."""
        self._admits = False

    def admit(self) -> None:
        """Let new connections in again."""
        self._admits = True

    def reset(self) -> None:
        """Break every connection at once, at both ends; what is under way is lost."""
        with self._lock:
            victims, self._sockets = self._sockets, set()
        for victim in victims:
            with contextlib.suppress(OSError):
                victim.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
                victim.shutdown(socket.SHUT_RD)
        for victim in victims:
            victim.close()

    def close(self) -> None:
        """End everything."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        # Whom it has just let in has to be among those who are reset: nobody else would close their sockets.
        self._accepting.join(10)
        self._listener.close()
        self.reset()
        self._flows.set()
        for thread in self._threads:
            thread.join(10)

    def _spawn(self, target: object, *arguments: object) -> threading.Thread:
        thread = threading.Thread(target=target, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()
        return thread

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self._target) if self._admits else None
            except OSError:
                server = None
            if server is None:
                client.close()
                continue
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._sockets |= {client, server}
            self._spawn(self._pump, client, server)
            self._spawn(self._pump, server, client)

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                self._flows.wait()
                block = source.recv(65536)
                # Stalled meanwhile: keep what was read until the network heals, as the network itself would.
                self._flows.wait()
                if not block:
                    break
                sink.sendall(block)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)
        with self._lock:
            known = source in self._sockets
        if not known:
            source.close()
