"""Many lives of one client, each ended by SIGKILL at a random moment: what did its ledger lose? Run as a module.

    python -m tests.worker.killed_life DIRECTORY KILLS SEED

Children are forked, so that a life costs milliseconds. Each says what it has done, after it was done; after each death
the directory is opened and compared with what was said. Prints how many lives, charges and drops there were.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path
from uuid import UUID

import numpy as np

from shared.privacy.accountant import epsilon_of
from shared.privacy.charges import RecordCharge
from worker.memory import read_client
from worker.state import ClientState, commit
from worker.storage import DirectoryStorage
from worker.stored_update import TaskId, UpdateMeta

CHARGE = RecordCharge(noise_multiplier=2.0, sampling_rate=0.1, steps=3)
LIFE_S_MAX = 0.03


def live(path: Path, say: int, chance: random.Random) -> None:
    """Save, then spend, drop or fail, until killed."""
    state = ClientState(DirectoryStorage(path), client="client-1", federation=UUID(int=7))
    os.write(say, b"opened\n")
    while True:
        version = (state.last_task.version if state.last_task else 0) + 1
        meta = UpdateMeta(task=TaskId(version, 0), trained_head=b"", num_examples=1, metrics={})
        update = state.save_update(np.full(50, state.counter + 1, np.float32), meta)
        match chance.choice(("spend", "spend", "drop", "fail")):
            case "spend":
                state.spend(update.update_id, CHARGE, at_us=1)
                os.write(say, b"spent %d\n" % update.update_id)
            case "drop":
                state.drop_update()
                os.write(say, b"dropped %d\n" % update.update_id)
            case _:
                commit([state.stage_failure(meta.task, CHARGE, 1)])
                os.write(say, b"failed\n")


def one_life(path: Path, chance: random.Random) -> list[str]:
    """Fork a child, kill it, and return what it said."""
    hear, say = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(hear)
        live(path, say, random.Random(chance.random()))
    os.close(say)
    with os.fdopen(hear) as heard:
        first = heard.readline()
        # From its first word on: a life that dies while it opens the directory is one in a few as well.
        time.sleep(chance.uniform(0, LIFE_S_MAX) if chance.random() < 0.9 else 0)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return [first.strip(), *(line.strip() for line in heard)]


def main(path: Path, kills: int, seed: int) -> None:
    chance, charges, epsilon, drops = random.Random(seed), 0, 0.0, 0
    spent: set[int] = set()
    for _ in range(kills):
        words = [line.split() for line in one_life(path, chance)]
        said = sum(word[0] in ("spent", "failed") for word in words)
        drops += sum(word[0] == "dropped" for word in words)
        spent |= {int(word[1]) for word in words if word[0] == "spent"}
        memory = read_client(path)
        found = [record.charge for record in memory.records if record.charge is not None]
        assert len(found) == len(memory.records), "an update left without its charge"
        assert spent <= {mark.update for mark in memory.spent}, "what was said to be spent is not"
        # One more may have been on its way to being said.
        assert charges + said <= len(found) <= charges + said + 1, "a charge was lost, or made for what was dropped"
        assert epsilon_of(found, 1e-5) >= epsilon, "spent privacy went back"
        charges, epsilon = len(found), epsilon_of(found, 1e-5)
    sys.stdout.write(f"{kills} {charges} {drops}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
