"""Every process cuts the digits the same way, and nobody trains on what is held out."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from shared.codec.flatten import layout_of, read_weights
from shared.errors import SettingsError, WorkloadError
from shared.workloads.digits import Digits, DigitsCnn


def rows(tensor: torch.Tensor) -> list[bytes]:
    return [row.tobytes() for row in tensor.numpy()]


def test_clients_and_evaluation_share_out_all_images() -> None:
    workload = Digits(partition="dirichlet:0.5", clients=7, seed=3)

    shares = [workload.client_data(f"client-{number}", None) for number in range(1, 8)]
    held_out = workload.evaluation_data()

    assert len(held_out) == 360
    assert sum(len(share) for share in shares) == 1797 - 360
    everything = [row for part in (*shares, held_out) for row in rows(part.tensors[0])]
    assert len(set(everything)) == 1797  # all images of this data set are different


def test_every_digit_is_held_out_in_its_proportion() -> None:
    counts = torch.bincount(Digits().evaluation_data().tensors[1])

    assert len(counts) == 10
    assert all(34 <= count <= 38 for count in counts.tolist())


def test_the_split_is_fixed_for_every_seed_and_release() -> None:
    digests = {
        hashlib.sha256(Digits(partition="iid", seed=seed).evaluation_data().tensors[0].numpy().tobytes()).hexdigest()
        for seed in range(3)
    }

    # Made by this code; figures measured on another split are not comparable.
    assert {digest[:16] for digest in digests} == {"d552786b9c00b2d4"}


def test_initial_weights_follow_the_seed_and_nothing_else() -> None:
    state = torch.get_rng_state()

    weights = [read_weights(Digits(seed=seed).model()) for seed in (0, 0, 1)]

    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(weights[0], weights[1])
    assert not np.array_equal(weights[0], weights[2])
    assert layout_of(Digits().model()).dimension == 64 * 128 + 128 + 128 * 10 + 10
    assert 0.08 < np.abs(weights[0]).max() <= 1 / 8


def test_the_network_of_convolutions_takes_the_same_images() -> None:
    workload = DigitsCnn(seed=3)

    outputs = workload.model()(workload.evaluation_data().tensors[0])

    assert outputs.shape == (360, 10)
    assert torch.equal(workload.evaluation_data().tensors[0], Digits().evaluation_data().tensors[0])
    assert layout_of(workload.model()).dimension == 16 * 9 + 16 + 32 * 16 * 9 + 32 + 128 * 10 + 10
    assert np.array_equal(read_weights(workload.model()), read_weights(DigitsCnn(seed=3).model()))
    assert np.abs(read_weights(workload.model())[-1290:]).max() <= 1 / 128**0.5


def test_skewed_features_are_those_of_iid_with_a_clients_own_noise() -> None:
    noisy, clean = Digits(partition="features:0.04", clients=4), Digits(partition="iid", clients=4)

    for number in (1, 4):
        seen, held = (workload.client_data(f"client-{number}", None).tensors for workload in (noisy, clean))
        assert torch.equal(seen[1], held[1])
        assert float((seen[0] - held[0]).std()) == pytest.approx((0.04 * number / 4) ** 0.5, rel=0.05)
        assert torch.equal(seen[0], noisy.client_data(f"client-{number}", None).tensors[0])
    assert torch.equal(noisy.evaluation_data().tensors[0], clean.evaluation_data().tensors[0])


def test_the_number_at_the_end_of_an_id_names_the_share() -> None:
    workload = Digits(clients=12)

    first, tenth = (workload.client_data(client, None) for client in ("berlin-3", "client10"))

    assert torch.equal(first.tensors[0], workload.client_data("client-3", None).tensors[0])
    assert torch.equal(tenth.tensors[0], workload.client_data("client-10", None).tensors[0])


@pytest.mark.parametrize("client", ["client", "client-0", "client-13", "7-client"])
def test_an_id_without_a_share_is_refused_with_remedies(client: str) -> None:
    with pytest.raises(WorkloadError, match=r"shares 1 to 12.*own data file"):
        Digits(clients=12).client_data(client, None)


def test_a_clients_own_file_wins(tmp_path: Path) -> None:
    path = tmp_path / "digits.npz"
    np.savez(path, features=np.full((3, 64), 16), targets=[1, 2, 3])

    data = Digits().client_data("berlin", path)

    assert torch.equal(data.tensors[0], torch.ones(3, 64))
    assert data.tensors[1].tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"features": np.zeros((2, 64))}, "targets"),
        ({"features": np.zeros((2, 63)), "targets": np.zeros(2)}, r"features \(n, 64\)"),
        ({"features": np.zeros((2, 64)), "targets": np.zeros(3)}, r"targets \(n,\)"),
        ({"features": np.zeros((2, 64)), "targets": np.array([0, 10])}, "outside 0 to 9"),
        ({"features": np.zeros((2, 64)), "targets": np.array(["a", "b"])}, "must hold numbers, not float64 and <U1"),
    ],
)
def test_a_file_of_another_form_is_refused(tmp_path: Path, arrays: dict[str, np.ndarray], told: str) -> None:
    path = tmp_path / "digits.npz"
    np.savez(path, **arrays)  # type: ignore[arg-type]

    with pytest.raises(WorkloadError, match=told):
        Digits().client_data("berlin-1", path)


@pytest.mark.parametrize("name", ["features", "targets"])
def test_what_is_said_of_a_file_quotes_no_record(name: str, tmp_path: Path) -> None:
    # The coordinator is told of it.
    arrays = {"features": np.zeros((2, 64)), "targets": np.zeros(2, dtype=np.int64)}
    arrays[name] = np.full(arrays[name].shape, "Jane Doe")
    path = tmp_path / "digits.npz"
    np.savez(path, **arrays)

    with pytest.raises(WorkloadError) as refusal:
        Digits().client_data("client-0", path)
    assert "Doe" not in str(refusal.value)


def test_a_missing_or_foreign_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("not an archive", encoding="utf-8")

    for name in ("absent.npz", "text.npz"):
        with pytest.raises(WorkloadError, match=name):
            Digits().client_data("berlin-1", tmp_path / name)


def test_options_are_checked_when_the_workload_is_made() -> None:
    with pytest.raises(SettingsError, match=r"^partition"):
        Digits(partition="even")
    for options in ({"clients": 0}, {"clients": "20"}, {"seed": -1}, {"seed": True}):
        with pytest.raises(WorkloadError, match=f"workload_options: {next(iter(options))}"):
            Digits(**options)  # type: ignore[arg-type]
