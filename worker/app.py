"""The worker process: the only place that builds its adapters and threads."""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path

import torch

from shared.directory import DIRECTORY_FILE
from shared.effects import note
from shared.errors import DirectoryError, PlanError, SettingsError, WorkloadError
from shared.garbage import spare_collections
from shared.inbox import Inbox
from shared.membership import Membership, keep_newest, load_membership, read_signed
from shared.plan import Plan
from shared.privacy.entropy import SecureSource
from shared.stopping import StopSignal
from shared.telemetry import Telemetry
from shared.transport.port import Transport, TransportEvent
from shared.transport.rabbitmq import RabbitMqTransport
from shared.workloads.loading import import_workload, load_workload
from shared.workloads.optimizers import optimizer_factory
from shared.workloads.port import Workload
from worker.plan_check import check_layout
from worker.seating import FixedSeats, Seating, Seats, check_candidates, open_fixed
from worker.service import Identity, WorkerService
from worker.settings import WorkerSettings
from worker.sharing_out import Replica
from worker.trainer import Deliver, Trained, Trainer, Training, TrainingThread
from worker.training.device import training_device
from worker.update import Encode, prepare_words

WAKE_MAX_S = 1.0

Prepare = Callable[[WorkerSettings, Plan, Deliver], Training]


def run_worker(
    settings: WorkerSettings,
    *,
    prepare: Prepare | None = None,
    encode: Encode = prepare_words,
    wrap_transport: Callable[[Transport, Inbox[TransportEvent | Trained]], Transport] = lambda transport, _: transport,
) -> None:
    """Serve clients until the process is told to stop (SIGTERM, SIGINT).

    Args:
        settings: whom, where, how.
        prepare, encode, wrap_transport: seams for experiments that replace a part of the worker.

    Raises:
        ComitiaError: whatever keeps a worker from working; each names its remedy.
    """
    training_device(settings.device)
    torch.set_num_threads(settings.torch_threads)
    folder = settings.federation_dir
    members = load_members(folder, settings.state_dir)
    directory = members.directory
    if settings.site not in directory.sites:
        there = ", ".join(sorted(directory.sites)) or "nobody is enrolled"
        raise SettingsError(f"site: {settings.site!r} is not in {folder / DIRECTORY_FILE} ({there}); set COMITIA_SITE")
    check_candidates(settings, directory)
    opened = open_fixed(settings, directory)
    states, keys = {c: state for c, (state, _) in opened.items()}, {c: key for c, (_, key) in opened.items()}
    identity = Identity(members, settings.site, f"w{secrets.token_hex(6)}", keys, settings.policy)
    _warm_up(settings)
    inbox: Inbox[TransportEvent | Trained] = Inbox()
    make_training = prepare or prepare_training
    telemetry = Telemetry(process="worker", worker=identity.worker)
    with StopSignal() as stop:
        transport: Transport = wrap_transport(
            RabbitMqTransport(settings.broker, inbox.put, name=f"{directory.federation}-{identity.worker}"), inbox
        )
        service = WorkerService(
            identity,
            states,
            transport,
            lambda plan: make_training(settings, _seen(plan, settings, telemetry), inbox.put),
            rounding=_rounding(settings.seed, sorted(states) or [identity.worker]),
            clock_us=lambda: time.time_ns() // 1000,
            telemetry=telemetry,
            keep_directory=lambda newest: keep_newest(settings.state_dir / DIRECTORY_FILE, newest),
            encode=encode,
        )
        try:
            broker = transport.connect()
            service.telemetry.note(note("worker_started", broker=broker, clients=sorted(states)))
            service.start()
            spare_collections()
            with _seating(settings, identity, service) as seating:
                while not stop.requested:
                    seating.look(time.monotonic())
                    _wait_and_step(service, inbox)
                seating.leave(time.monotonic())
                _drain(service, inbox, settings.drain_s)
        finally:
            transport.close()
            service.close()
    _say_goodbye(service)


def _seating(settings: WorkerSettings, identity: Identity, service: WorkerService) -> AbstractContextManager[Seats]:
    """Shares clients out with other workers, unless the settings fix whom we serve."""
    members = identity.members
    if settings.clients:
        return nullcontext(FixedSeats(settings, lambda: members.directory, service, service.telemetry))
    replica = Replica(
        pool=f"{members.directory.federation_id} {settings.site} {settings.client_ids}",
        worker=identity.worker,
        pid=os.getpid(),
        since_us=time.time_ns() // 1000,
        seats=settings.seats,
        clients=frozenset(),
    )
    return closing(Seating(settings, lambda: members.directory, service, replica, service.telemetry))


def _rounding(seed: int | None, clients: Sequence[str]) -> SecureSource:
    """Randomness of rounding, and of the noise that members of a group add.

    Noise of several processes must not be the same, also where it follows from a seed.
    """
    if seed is None:
        return SecureSource.fresh()
    return SecureSource(hashlib.sha256(f"rounding/{seed}/{','.join(clients)}".encode()).digest())


def _seen(plan: Plan, settings: WorkerSettings, telemetry: Telemetry) -> Plan:
    """Say loudly when the plan promises a privacy that our own seed takes away."""
    if plan.privacy.level != "off" and settings.seed is not None:
        text = "COMITIA_SEED is set: whoever knows it can subtract the noise, and nothing is private; unset it"
        telemetry.note(note("noise_is_seeded", "warning", text=text))
    return plan


def load_members(folder: Path, state_dir: Path) -> Membership:
    """The directory that we were given, or the newest that the log has shown us: never an older one.

    Raises:
        DirectoryError: it is missing or does not verify.
    """
    members = load_membership(folder)
    seen = state_dir / DIRECTORY_FILE
    try:
        if seen.exists():
            members.adopt(read_signed(seen))
    except DirectoryError as error:
        raise DirectoryError(f"{seen}: {error}") from error
    return members


def _warm_up(settings: WorkerSettings) -> None:
    """Import what training will need before anybody counts on us: it takes seconds without a sign of life.

    Raises:
        WorkloadError: the workload cannot be imported.
    """
    import_workload(settings.workload)
    optimizer_factory("SGD", {}, field="optimizer", error=WorkloadError)


def _wait_and_step(service: WorkerService, inbox: Inbox[TransportEvent | Trained]) -> None:
    wait_s = min(WAKE_MAX_S, max(0.0, service.next_wakeup() - time.monotonic()))
    service.step(inbox.take(wait_s), time.monotonic())


def _drain(service: WorkerService, inbox: Inbox[TransportEvent | Trained], drain_s: float) -> None:
    """Let a group that may be forming finish, then leave."""
    deadline = time.monotonic() + drain_s
    service.drain(time.monotonic())
    while not service.drained and time.monotonic() < deadline:
        _wait_and_step(service, inbox)
    service.drain(time.monotonic(), at_once=True)


def _say_goodbye(service: WorkerService) -> None:
    service.telemetry.note(
        note(
            "worker_stopped",
            counts=dict(service.telemetry.counts),
            messages_published=service.messages_published,
            fsyncs=service.fsyncs,
        )
    )


def prepare_training(settings: WorkerSettings, plan: Plan, deliver: Deliver) -> Training:
    """The training that a plan asks for, on this worker's workload, in a thread of its own.

    Raises:
        ComitiaError: the plan is not one that this worker can serve.
    """
    return TrainingThread(make_trainer(settings, plan, workload_of(settings, plan)), deliver)


def workload_of(settings: WorkerSettings, plan: Plan) -> Workload:
    """The workload of a plan that this worker agrees to.

    Raises:
        ComitiaError: the plan names another, or its model has other parameters here.
    """
    if plan.workload != settings.workload:
        raise PlanError(f"the plan's workload is {plan.workload!r}, this worker's is {settings.workload!r}")
    workload = load_workload(plan.workload, plan.workload_options)
    check_layout(workload, plan)
    return workload


def make_trainer(settings: WorkerSettings, plan: Plan, workload: Workload) -> Trainer:
    """A trainer on this worker's data and device.

    Raises:
        ComitiaError: the device is not there, or the plan's optimizer or the model cannot be made.
    """
    device = training_device(settings.device)
    return Trainer(workload, plan, lambda client: data_path(settings, client), settings.seed, device)


def data_path(settings: WorkerSettings, client: str) -> Path | None:
    """Where a client's data lie, None if the workload knows by itself."""
    return None if settings.data_dir is None else settings.data_dir / client
