"""What does a worker demand of a plan and of a group before it lets anything of its clients' data out?

The plan is the coordinator's word; the policy is the client's own. Whatever the plan says, a group that does not meet
the policy gets nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from shared.directory import Directory
from shared.errors import RefusalReason, RemoteProtocolError
from shared.identity import Name
from shared.plan import Plan
from shared.privacy.charges import Charge, RecordCharge


class PrivacyBudget(BaseModel):
    """The most that a client spends, in the plan's unit of privacy, over all runs that its ledger holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epsilon: Annotated[
        float | None, Field(gt=0, description="Largest epsilon; empty: what the plan says that its rounds cost.")
    ] = None
    delta: Annotated[float | None, Field(gt=0, lt=1, description="Delta of that epsilon; empty: the plan's.")] = None


class Policy(BaseModel):
    """A worker's demands. `known_clients` maps client ids to their public keys (hex), checked by other means."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_summed: Annotated[int, Field(ge=1, le=512, description="Fewest updates in a sum that holds ours.")] = 3
    max_colluders: Annotated[
        int, Field(ge=0, le=512, description="Smallest max_colluders of a plan that we accept.")
    ] = 1
    min_members: Annotated[int, Field(ge=1, le=512, description="Smallest group that we take part in.")] = 3
    allow_groups_of_one: Annotated[
        bool, Field(description="Whether the coordinator may see our single updates (group_size = 1).")
    ] = False
    require_privacy: Annotated[
        Literal["record", "client"] | None,
        Field(description="Weakest level of privacy of a plan that we serve: record, or client, which is stronger."),
    ] = None
    privacy_budget: Annotated[
        PrivacyBudget, Field(description="Where each client stops; for each client the same.")
    ] = PrivacyBudget()
    directory_number: Annotated[int, Field(ge=0, description="Oldest directory that we accept.")] = 0
    known_clients: Annotated[
        dict[Name, Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]],
        Field(description="If given, only groups of these clients, with exactly these public keys (hex)."),
    ] = Field(default_factory=dict)

    def objection_to(self, plan: Plan, directory: Directory) -> str:
        """Why this worker does not serve the plan; empty if it does. Names the settings that decide it."""
        if directory.number < self.directory_number:
            return f"directory number {directory.number} is below policy.directory_number={self.directory_number}"
        if plan.group_size == 1:
            return "" if self.allow_groups_of_one else "group_size=1 shows single updates: policy.allow_groups_of_one"
        if plan.group_size < self.min_members:
            return f"group_size={plan.group_size} is below policy.min_members={self.min_members}"
        if plan.max_colluders < self.max_colluders:
            return f"max_colluders={plan.max_colluders} is below policy.max_colluders={self.max_colluders}"
        if plan.group_size < self.min_summed:
            return f"group_size={plan.group_size} is below policy.min_summed={self.min_summed}"
        return ""

    def objection_to_charge(self, charge: Charge | None) -> str:
        """Why this worker does not serve a plan of which each run costs this; empty if it does."""
        needed, level = self.require_privacy, "off"
        if charge is not None:
            level = "record" if isinstance(charge, RecordCharge) else "client"
        if needed is None or level == needed or (needed, level) == ("record", "client"):
            return ""
        return f"the plan's level of privacy is {level!r}, weaker than policy.require_privacy={needed!r}"

    def summed_floor(self, members: int) -> int:
        """Fewest updates in the sum of a group of `members`."""
        return 1 if members == 1 else self.min_summed

    def check_members(self, clients: Sequence[str], directory: Directory) -> None:
        """Return if we may be summed together with these clients.

        Raises:
            RemoteProtocolError: too few, or one whom we do not know (`POLICY`).
        """
        if len(clients) == 1:
            if not self.allow_groups_of_one:
                raise RemoteProtocolError(RefusalReason.POLICY, "a group of one: policy.allow_groups_of_one is off")
            return
        if len(clients) < self.min_members:
            detail = f"{len(clients)} members, policy.min_members={self.min_members}"
            raise RemoteProtocolError(RefusalReason.POLICY, detail)
        unknown = [client for client in clients if not self._knows(client, directory)]
        if unknown:
            detail = f"{', '.join(unknown)}: not in policy.known_clients, or under another key"
            raise RemoteProtocolError(RefusalReason.POLICY, detail)

    def _knows(self, client: str, directory: Directory) -> bool:
        known: Mapping[str, str] = self.known_clients
        return not known or known.get(client) == directory.client_key(client).raw.hex()
