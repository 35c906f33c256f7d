"""A small federation whose clients live in real directories and whose words go to a real socket. Run as a module.

    python -m tests.worker.traced_life DIRECTORY

Made to be watched from outside (system calls). Before each batch that holds words, `WORDS <client>` is sent as well,
so that a trace shows whose they are.
"""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import Any

from deploy.demo import simulation
from deploy.demo.options import DemoOptions
from shared.privacy.charges import RecordCharge
from shared.transport.memory import MemoryTransport
from shared.wire.framing import split_batch
from shared.wire.messages import Kind
from tests.simulated import notes_of
from worker import client, plan_check
from worker.budget import Terms
from worker.storage import DirectoryStorage

CLIENTS, ROUNDS = 3, 3


def main(folder: Path) -> None:
    near, far = socket.socketpair()
    names = iter(f"client-{number:03d}" for number in range(1, CLIENTS + 1))

    class SocketTransport(MemoryTransport):
        def __init__(self, *args: Any, name: str) -> None:
            super().__init__(*args, name=name)
            self.name = name

        def publish(self, exchange: str, routing_key: str, body: bytes | memoryview, *, persistent: bool = True) -> int:
            if any(frame[4] == Kind.WORDS for frame in split_batch(bytes(body))):
                near.sendall(b"WORDS " + self.name.encode())
                near.sendall(bytes(body)[:512])
                far.recv(1 << 16)
            return super().publish(exchange, routing_key, body, persistent=persistent)

    terms = Terms(charge=RecordCharge(noise_multiplier=1.0, sampling_rate=1.0, steps=1))
    replaced: dict[Any, dict[str, Any]] = {
        client: {"terms_of": lambda plan: terms},
        plan_check: {"terms_of": lambda plan: terms},
        simulation: {
            "MemoryStorage": lambda: DirectoryStorage(folder / next(names)),
            "MemoryTransport": SocketTransport,
        },
    }
    for module, parts in replaced.items():
        vars(module).update(parts)
    options = DemoOptions(
        clients=CLIENTS, processes=CLIENTS, rounds=ROUNDS, group_size=1, max_colluders=0, robust="mean", partition="iid"
    )
    finished = [note for note in notes_of(options) if note.event == "round_finished"]
    assert len(finished) == ROUNDS


if __name__ == "__main__":
    main(Path(sys.argv[1]))
