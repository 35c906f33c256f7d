"""Medical records: standardized alike for everybody, and nobody trains on what is held out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer

from shared.errors import WorkloadError
from shared.workloads.breast_cancer import BreastCancer


def test_clients_and_evaluation_share_out_all_records() -> None:
    workload = BreastCancer(partition="dirichlet:0.5", clients=8, seed=2)

    shares = [workload.client_data(f"client-{number}", None).tensors for number in range(1, 9)]
    held_out = workload.evaluation_data().tensors

    assert len(held_out[0]) == 114
    assert len({row.numpy().tobytes() for part in (*shares, held_out) for row in part[0]}) == 569
    assert torch.bincount(held_out[1]).tolist() == [42, 72]  # 212 and 357 of 569


def test_measurements_are_standardized_over_the_training_records_alone() -> None:
    workload = BreastCancer(partition="iid", clients=1)
    training = workload.client_data("client-1", None).tensors[0]

    assert torch.allclose(training.mean(dim=0), torch.zeros(30), atol=1e-5)
    assert torch.allclose(training.std(dim=0, correction=0), torch.ones(30), atol=1e-5)
    assert float(workload.evaluation_data().tensors[0].mean(dim=0).abs().max()) > 0.01


def test_a_clients_own_raw_records_are_scaled_the_same_way(tmp_path: Path) -> None:
    workload, bunch = BreastCancer(), load_breast_cancer()
    held_out = workload.table().held_out
    np.savez(tmp_path / "own.npz", features=bunch.data[held_out], targets=bunch.target[held_out])

    own = workload.client_data("clinic", tmp_path / "own.npz").tensors

    assert all(torch.equal(one, other) for one, other in zip(own, workload.evaluation_data().tensors, strict=True))


def test_a_file_with_a_third_class_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "own.npz", features=np.zeros((1, 30)), targets=[2])

    with pytest.raises(WorkloadError, match="outside 0 to 1"):
        BreastCancer().client_data("clinic", tmp_path / "own.npz")
