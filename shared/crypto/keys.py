"""Which keys do two members of a group share, and what is each of them for?

    public_of(seed) -> public                         X25519, both 32 bytes
    agree(seed, their_public) -> secret               the same on both sides
    derive(secret, purpose, context) -> key           HKDF-SHA256, one key per purpose and context

    sealing_key(secret, transcript, sender, receiver)                  for one sealed message, one way
    pair_mask_key(secret, transcript, clients, participants_digest)    the same for both members
    self_mask_key(seed, transcript, client)                            from a member's own random seed

Every key is bound to the transcript hash of its group, so nothing that was made for one group, one direction, one pair
or one set of participants fits another. The transcript hash names the offers, and with them both public keys, as
RFC 7748, section 6.1, asks of a key derivation.

Private keys appear as their 32-byte seeds, because seeds are what is shared out (`shared.crypto.shamir`). Whoever calls
owns the entropy; a pair of seeds serves one roster.

Reference: A. Langley, M. Hamburg, S. Turner, "Elliptic Curves for Security", RFC 7748; H. Krawczyk, P. Eronen,
"HMAC-based Extract-and-Expand Key Derivation Function (HKDF)", RFC 5869.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from shared.errors import LocalProtocolError, RefusalReason, RemoteProtocolError
from shared.identity import ClientId

KEY_BYTES = 32
SEED_BYTES = 32

_TAG = b"comitia/1/key"

_FIELD = 2**255 - 19

_LOW_ORDER = frozenset(
    bytes.fromhex(point)
    for point in (
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0100000000000000000000000000000000000000000000000000000000000000",
        "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
        "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    )
)


class KeyPurpose(StrEnum):
    """What a derived key is for. Values go into the derivation: they never change and are never reused."""

    SEALING = "sealing"
    PAIR_MASK = "pair mask"
    SELF_MASK = "self mask"


@dataclass(frozen=True, slots=True)
class OneTimeKeys:
    """The two key pairs of one offer, by their seeds (32 fresh random bytes each, never shown by `repr`)."""

    sealing_seed: bytes = field(repr=False)
    masking_seed: bytes = field(repr=False)
    _sealing: _KeyPair = field(init=False, repr=False, compare=False)
    _masking: _KeyPair = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.sealing_seed == self.masking_seed:
            raise LocalProtocolError("sealing and masking need seeds of their own")
        object.__setattr__(self, "_sealing", _KeyPair(self.sealing_seed))
        object.__setattr__(self, "_masking", _KeyPair(self.masking_seed))

    @property
    def sealing_public(self) -> bytes:
        """The public key to which members seal shares (32 bytes)."""
        return self._sealing.public

    @property
    def masking_public(self) -> bytes:
        """The public key with which members agree on pair masks (32 bytes)."""
        return self._masking.public

    def sealing_secret(self, their_public: bytes) -> bytes:
        """What `agree` gives with a member's sealing key; computed once, though both directions need it."""
        return self._sealing.agree(their_public)

    def masking_secret(self, their_public: bytes) -> bytes:
        """What `agree` gives with a member's masking key."""
        return self._masking.agree(their_public)


class _KeyPair:
    """One X25519 key pair. Loading a seed costs as much as an agreement, so both are done once."""

    __slots__ = ("_agreed", "_private", "public")

    def __init__(self, seed: bytes) -> None:
        self._private = _private(seed)
        self._agreed: dict[bytes, bytes] = {}
        self.public = self._private.public_key().public_bytes_raw()

    def agree(self, their_public: bytes) -> bytes:
        if their_public not in self._agreed:
            self._agreed[their_public] = _exchange(self._private, their_public)
        return self._agreed[their_public]


def public_of(seed: bytes) -> bytes:
    """Return the X25519 public key (32 bytes) of a seed (32 bytes).

    Raises:
        LocalProtocolError: the seed has another size.
    """
    return _private(seed).public_key().public_bytes_raw()


def of_full_order(public: bytes) -> bytes:
    """Return an X25519 public key (32 bytes) with which secrets can be agreed on, in its one form.

    Found out when an offer is opened, a bad key costs nobody else a group. X25519 ignores the topmost bit and reduces
    the rest: what is not reduced would be somebody else's key under other bytes.

    Raises:
        ValueError: a point of order 1, 2, 4 or 8, on the curve or its twist: everybody has the secret zero with it; or
            no number below 2**255 - 19.
    """
    if public[:-1] + bytes((public[-1] & 0x7F,)) in _LOW_ORDER:
        raise ValueError("a public key of low order")
    if int.from_bytes(public, "little") >= _FIELD:
        raise ValueError("a public key in another form than its one")
    return public


def agree(seed: bytes, their_public: bytes) -> bytes:
    """Return the X25519 shared secret (32 bytes): material for `derive`, never a key itself.

    Raises:
        RemoteProtocolError: their key is not 32 bytes, or is a point of low order, with which everybody would have
            the secret zero (`BAD_KEY`).
        LocalProtocolError: the seed is not 32 bytes.
    """
    return _exchange(_private(seed), their_public)


def derive(secret: bytes, purpose: KeyPurpose, context: Sequence[bytes]) -> bytes:
    """Return a key (32 bytes) by HKDF-SHA256, without salt, bound to a purpose and to all fields of a context.

    The info is a tag, the purpose and the fields, each behind its length (4 bytes, big endian): different purposes or
    contexts never give the same info.

    Args:
        secret: 32 bytes, from `agree` or from a cryptographic generator.
        context: what the key is bound to, in a fixed order.

    Raises:
        LocalProtocolError: the secret has another size.
    """
    if len(secret) != SEED_BYTES:
        raise LocalProtocolError(f"a key is derived from {SEED_BYTES} bytes, not from {len(secret)}")
    fields = (_TAG, purpose.encode(), *context)
    info = b"".join(part for one in fields for part in (len(one).to_bytes(4, "big"), one))
    return HKDF(algorithm=hashes.SHA256(), length=KEY_BYTES, salt=None, info=info).derive(secret)


def sealing_key(secret: bytes, transcript: bytes, sender: ClientId, receiver: ClientId) -> bytes:
    """Return the key under which `sender` seals its one message of this group to `receiver`."""
    return derive(secret, KeyPurpose.SEALING, (transcript, sender.encode(), receiver.encode()))


def pair_mask_key(
    secret: bytes, transcript: bytes, clients: tuple[ClientId, ClientId], participants_digest: bytes
) -> bytes:
    """Return the key of the mask that two clients, named in any order, share.

    `participants_digest` stands for the set P over which masks are computed: masks of another set are other masks.
    """
    lower, higher = sorted(clients)
    return derive(secret, KeyPurpose.PAIR_MASK, (transcript, lower.encode(), higher.encode(), participants_digest))


def self_mask_key(seed: bytes, transcript: bytes, client: ClientId) -> bytes:
    """Return the key of a client's own mask, from the random seed (32 bytes) that it shares out for this group."""
    return derive(seed, KeyPurpose.SELF_MASK, (transcript, client.encode()))


def _exchange(private: X25519PrivateKey, their_public: bytes) -> bytes:
    if len(their_public) != KEY_BYTES:
        raise RemoteProtocolError(RefusalReason.BAD_KEY, f"a public key has {KEY_BYTES} bytes, not {len(their_public)}")
    try:
        return private.exchange(X25519PublicKey.from_public_bytes(their_public))
    except ValueError:
        # The library's word for a secret of zeros, which RFC 7748, section 6.1, lets both sides check for.
        raise RemoteProtocolError(RefusalReason.BAD_KEY, "a public key of low order") from None


def _private(seed: bytes) -> X25519PrivateKey:
    if len(seed) != SEED_BYTES:
        raise LocalProtocolError(f"an X25519 seed has {SEED_BYTES} bytes, not {len(seed)}")
    return X25519PrivateKey.from_private_bytes(seed)
