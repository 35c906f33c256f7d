"""Where does a simulated federation get its identities? They are made in memory, and nobody ever sees them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from uuid import UUID

from deploy.federation_keys import Entropy, numbered_names
from shared.crypto.signing import KEY_BYTES, SigningKey, VerifyingKey
from shared.directory import Directory, sign_directory, with_clients
from shared.identity import ClientId

_SITE = "site-1"


@dataclass(frozen=True, slots=True)
class SimulatedKeys:
    """The signed directory of a federation, the key that it verifies with, and everybody's private keys."""

    directory: Directory
    signed: bytes
    enrolment: VerifyingKey
    coordinator: SigningKey = field(repr=False)
    of_client: Mapping[str, SigningKey] = field(repr=False)

    @property
    def clients(self) -> tuple[ClientId, ...]:
        """All clients, sorted."""
        return self.directory.active_clients()


def make_simulated_keys(federation: str, clients: int, entropy: Entropy) -> SimulatedKeys:
    """Make keys of a federation of one site, as `deploy.federation_keys` would write them to files.

    A fixed `entropy` gives the same keys and the same federation id.

    Raises:
        SettingsError: there are too few clients, or too many.
    """
    enrolment, coordinator = _draw_key(entropy), _draw_key(entropy)
    federation_id = UUID(bytes=entropy(16), version=4)
    founded = Directory(
        federation=federation, federation_id=federation_id, number=1, coordinator_key=coordinator.public.raw.hex()
    )
    keys = {name: _draw_key(entropy) for name in numbered_names(founded, clients)}
    directory = with_clients(founded, _SITE, _SITE, {name: key.public for name, key in keys.items()})
    return SimulatedKeys(directory, sign_directory(directory, enrolment), enrolment.public, coordinator, keys)


def _draw_key(entropy: Entropy) -> SigningKey:
    return SigningKey.from_seed(entropy(KEY_BYTES))
