"""Running statistics that federate between real processes end up in the model's file."""

from __future__ import annotations

import pytest
from safetensors.torch import load_file

from tests.integration.conftest import MakeFederation


def test_the_final_model_has_the_clients_mean_statistics(make_federation: MakeFederation) -> None:
    federation = make_federation(
        "Normalized",
        4,
        float_buffers=True,
        codec={"selection": "dense", "density": 1.0, "clipping_norm": 50.0},
        weight_records_max=4,
        aggregation={"rule": "mean", "trim": 0},
        round={"rounds": 2, "min_clients": 4},
    )
    coordinator = federation.start_coordinator()
    federation.start_worker("client-001", "client-002", device="cpu")
    federation.start_worker("client-003", "client-004")
    assert coordinator.wait() == 0, coordinator.tail()

    stored = load_file(federation.root / "output/final.safetensors")
    # Each of two batches moves the mean a tenth of the way to the client's number, the variance to 0.
    assert stored["0.running_mean"].item() == pytest.approx(0.1 * 2.5 + 0.9 * 0.1 * 2.5, abs=0.01)
    assert stored["0.running_var"].item() == pytest.approx(0.9**2, abs=0.01)
    assert stored["0.num_batches_tracked"] == 0
