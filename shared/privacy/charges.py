"""What does one release of a client cost? The parameters that an accountant needs, as the ledger keeps them.

The two units of privacy are never added up: a record-level charge says how little one record shows, a client-level
charge how little the whole client does.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordCharge:
    """One run of DP-SGD: `steps` Gaussian mechanisms on Poisson samples of the client's records.

    `noise_multiplier` is the noise's standard deviation over the clipping norm of one record's gradient (sigma),
    `sampling_rate` the chance of a record to be in a step (q; 1 is the full batch).
    """

    noise_multiplier: float
    sampling_rate: float
    steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientCharge:
    """One masking with Skellam noise, in integer steps of the quantized update.

    `variance` is mu, the noise's variance per coordinate that the honest members of the opened sum add at least;
    `variance_alone` is this client's own share of it, what is left if all other members collude. `l1` and `l2` bound
    the integer norms of what the client adds to the sum (Delta_1, Delta_2).
    """

    variance: float
    variance_alone: float
    l1: float
    l2: float


Charge = RecordCharge | ClientCharge
