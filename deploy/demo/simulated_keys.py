"""Where does a simulated federation get its identities? They are made in memory, and nobody ever sees them."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from uuid import uuid4

from deploy.federation_keys import numbered_names
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


def make_simulated_keys(federation: str, clients: int) -> SimulatedKeys:
    """Fresh keys of a federation of one site, as `deploy.federation_keys` would write them to files.

    Raises:
        SettingsError: there are too few clients, or too many.
    """
    enrolment, coordinator = _fresh_key(), _fresh_key()
    founded = Directory(
        federation=federation, federation_id=uuid4(), number=1, coordinator_key=coordinator.public.raw.hex()
    )
    keys = {name: _fresh_key() for name in numbered_names(founded, clients)}
    directory = with_clients(founded, _SITE, _SITE, {name: key.public for name, key in keys.items()})
    return SimulatedKeys(directory, sign_directory(directory, enrolment), enrolment.public, coordinator, keys)


def _fresh_key() -> SigningKey:
    return SigningKey.from_seed(secrets.token_bytes(KEY_BYTES))
