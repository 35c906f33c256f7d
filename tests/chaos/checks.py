"""What must hold, whatever was killed: in the log, in the clients' ledgers, in the words that left."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from shared.crypto.signing import VerificationCache
from shared.incoming import keys_of
from shared.membership import load_membership
from shared.wire.framing import Opener, split_batch
from shared.wire.group_messages import Words
from shared.wire.log_messages import ChangeEntry, DrawEntry, Entry, TermEntry, VoidEntry
from tests.integration.federation import LiveFederation
from worker.ledger import LedgerEnd, SpentMark, read_ledger


@dataclass
class LedgerWatch:
    """Looks at ledgers while they grow: what was on the disk once stays."""

    seen: dict[str, bytes] = field(default_factory=dict)
    looks: int = 0

    def look(self, contents: dict[str, bytes]) -> None:
        """Compare with the last look. A torn end may be cut off; whole frames stay."""
        self.looks += 1
        for client, content in contents.items():
            assert content.startswith(self.seen.get(client, b"")), f"the ledger of {client} has lost or changed records"
            _, end = read_ledger(content, LedgerEnd())
            self.seen[client] = content[: end.position]

    def spent(self) -> dict[str, list[SpentMark]]:
        """Every client's spent updates, as last seen."""
        return {
            client: [mark for mark in read_ledger(content, LedgerEnd())[0] if isinstance(mark, SpentMark)]
            for client, content in self.seen.items()
        }


def tap_words(federation: LiveFederation) -> None:
    """Let copies of everything that members send to stages pile up in a queue of our own."""
    with federation.channel() as channel:
        channel.queue_declare(tap_of(federation), durable=True, arguments={"x-queue-type": "quorum"})
        channel.queue_bind(tap_of(federation), federation.names.up, "reply.#")


def tap_of(federation: LiveFederation) -> str:
    """The name of that queue."""
    return f"{federation.name}.tap"


def words_that_left(federation: LiveFederation) -> list[tuple[str, Words]]:
    """Client and message of all words that reached the broker, repeats included; the tap is removed."""
    members = load_membership(federation.keys.root)
    opener = Opener(members.directory.federation_id, keys_of(members), VerificationCache())
    found = []
    with federation.channel() as channel:
        while True:
            method, _, body = channel.basic_get(tap_of(federation), auto_ack=True)
            if method is None:
                break
            opened = [opener.open(frame) for frame in split_batch(body)]
            found += [(one.sender, one.message) for one in opened if isinstance(one.message, Words)]
        channel.queue_delete(tap_of(federation))
    return found


def check_log(entries: Iterable[Entry]) -> dict[str, int]:
    """One accepted entry for each version, every group in one of them at most; returns figures."""
    changes, draws, voids, terms = [], {}, 0, 0
    open_draw: DrawEntry | None = None
    for entry in entries:
        match entry:
            case DrawEntry():
                assert open_draw is None
                open_draw = entry
                draws[len(draws)] = entry
            case ChangeEntry():
                assert open_draw is not None
                assert max(entry.groups) < open_draw.groups
                changes.append(entry)
                open_draw = None
            case VoidEntry():
                voids, open_draw = voids + 1, None
            case TermEntry():
                terms += 1
    assert [change.version for change in changes] == list(range(1, len(changes) + 1)), "versions do not rise by one"
    groups = [(change.draw, group) for change in changes for group in change.groups]
    assert len(set(groups)) == len(groups), "a group stands twice in the log"
    assert len({change.draw for change in changes}) == len(changes), "two versions of one draw"
    return {"versions": len(changes), "draws": len(draws), "voids": voids, "terms": terms, "groups": len(groups)}


def check_spending(spent: dict[str, list[SpentMark]], words: Iterable[tuple[str, Words]]) -> dict[str, int]:
    """Whatever left was charged before, once, and went into one sum; returns figures.

    A client masks an update for one transcript. So the transcripts that it sent words for are as many updates, and each
    needs a mark of its own; of one transcript there is one vector, however often it was sent.
    """
    sent: dict[str, dict[bytes, dict[int, bytes]]] = defaultdict(lambda: defaultdict(dict))
    for client, message in words:
        body = sent[client][message.transcript].setdefault(message.part, message.body)
        assert body == message.body, f"{client} sent two different vectors under one transcript"
    unsent = 0
    for client, marks in spent.items():
        assert len({mark.update for mark in marks}) == len(marks), f"{client} spent an update twice"
        places = [(mark.version, mark.attempt) for mark in marks]
        assert places == sorted(set(places)), f"{client} was charged twice for one attempt"
        assert len(sent[client]) <= len(marks), f"{client} sent words that it was not charged for"
        unsent += len(marks) - len(sent[client])
    return {"spent": sum(map(len, spent.values())), "spent_unsent": unsent}
