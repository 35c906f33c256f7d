"""What can go wrong, as one small tree.

::

    ComitiaError
    ├── SettingsError           a user's mistake: names the field and the remedy; exit code 2
    ├── PlanError               a plan that is unsound or was not signed by its coordinator; exit code 2
    ├── DirectoryError          keys or directory missing, unreadable or not verified; exit code 2
    ├── WorkloadError           a workload that does not import or breaks its contract; exit code 2
    ├── StateError              a state directory that is torn or not ours; exit code 2
    │   ├── StateHeld           … or that another process holds
    │   └── ClientAway          … or whose client the operator has taken out
    ├── BrokerUnavailable       no broker within the bounded back-off; exit code 2 at start
    ├── LocalProtocolError      our own machine was driven wrongly: a bug, so let it crash
    └── RemoteProtocolError     a peer's message is refused, with a closed reason: drop and count
"""

from __future__ import annotations

from enum import StrEnum


class ComitiaError(Exception):
    """Root of every error that Comitia raises on purpose."""

    exit_code = 2


class SettingsError(ComitiaError):
    """A setting is unknown, out of bounds or contradicts another; the message names it and the remedy."""


class PlanError(ComitiaError):
    """The plan cannot hold what it promises, or is not signed by the coordinator the directory names."""


class DirectoryError(ComitiaError):
    """A key or the directory of identities is missing, unreadable, or does not verify."""


class WorkloadError(ComitiaError):
    """The workload does not import or does not keep the contract of `shared.workloads.port.Workload`."""


class StateError(ComitiaError):
    """A state directory belongs to another client or federation, cannot be used, or is corrupt."""


class StateHeld(StateError):
    """A state directory is held by another process."""


class ClientAway(StateError):
    """A client was taken out of the federation for the time being, by `comitia worker leave`."""


class BrokerUnavailable(ComitiaError):
    """No broker of the host list could be reached within the bounded back-off."""


class LocalProtocolError(ComitiaError):
    """One of our own machines was asked for something that its state does not allow."""

    exit_code = 1


class RefusalReason(StrEnum):
    """Why a message from a peer was refused. Closed: it is a metric label."""

    OVERSIZED = "oversized"
    MALFORMED = "malformed"
    WRONG_VERSION = "wrong_version"
    UNKNOWN_KIND = "unknown_kind"
    UNEXPECTED_KIND = "unexpected_kind"
    UNKNOWN_SENDER = "unknown_sender"
    BAD_SIGNATURE = "bad_signature"
    BAD_KEY = "bad_key"
    BAD_SEAL = "bad_seal"
    WRONG_FEDERATION = "wrong_federation"
    REPLAYED = "replayed"
    STALE = "stale"
    LATE = "late"
    DUPLICATE = "duplicate"
    WRONG_SIZE = "wrong_size"
    NOT_FINITE = "not_finite"
    OUT_OF_RANGE = "out_of_range"
    WRONG_PARENT = "wrong_parent"
    WRONG_TERM = "wrong_term"
    NOT_ALLOWED = "not_allowed"
    POLICY = "policy"
    OVERFLOW = "overflow"
    BACKED_OFF = "backed_off"


class RemoteProtocolError(ComitiaError):
    """A peer's message is refused. It never stops a process: the shell drops the message and counts the reason."""

    exit_code = 1

    def __init__(self, reason: RefusalReason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
