"""The coordinator process: the only place that builds its adapters and threads."""

from __future__ import annotations

import secrets
import time

import torch

from coordinator.directory_file import DirectoryFile
from coordinator.dry_run import privacy_notes
from coordinator.initial_weights import first_weights
from coordinator.log_writer import Fenced
from coordinator.output import EvaluationThread, Evaluator, ModelFiles
from coordinator.presets import with_preset
from coordinator.service import TICK_S, CoordinatorItem, CoordinatorService
from coordinator.settings import CoordinatorSettings, plan_of
from coordinator.summing.service import StageService
from shared.attack_odds import odds_table
from shared.crypto.signing import SigningKey, load_signing_key
from shared.directory import COORDINATOR_KEY_FILE, DIRECTORY_FILE
from shared.effects import note
from shared.errors import DirectoryError
from shared.garbage import spare_collections
from shared.inbox import Inbox
from shared.membership import Membership, load_membership, read_signed
from shared.plan import Plan
from shared.stopping import StopSignal
from shared.telemetry import Telemetry
from shared.transport.port import TransportEvent
from shared.transport.rabbitmq import RabbitMqTransport
from shared.workloads.loading import load_workload

DRAIN_S = 5.0
"""How long an orderly end waits for the broker's confirms."""


def run_coordinator(settings: CoordinatorSettings) -> None:
    """Run until the planned rounds are done or the process is told to stop (SIGTERM, SIGINT).

    A process whose only role is summing runs until it is told to stop.

    Raises:
        ComitiaError: whatever keeps a coordinator from working; each names its remedy.
    """
    torch.set_num_threads(settings.evaluation_threads)
    members, key = _identities(settings)
    if "scheduler" in settings.roles:
        sessions = _Sessions(settings, members, key)
        with StopSignal() as stop:
            sessions.run(stop)
    else:
        _run_stage(settings, members, key)


def _identities(settings: CoordinatorSettings) -> tuple[Membership, SigningKey]:
    folder = settings.federation_dir
    members = load_membership(folder)
    key = load_signing_key(folder / COORDINATOR_KEY_FILE)
    if key.public != members.directory.coordinator:
        raise DirectoryError(
            f"{folder / COORDINATOR_KEY_FILE} is not the coordinator's key that {folder / DIRECTORY_FILE} names"
        )
    return members, key


def _run_stage(settings: CoordinatorSettings, members: Membership, key: SigningKey) -> None:
    federation = members.directory.federation
    inbox: Inbox[TransportEvent] = Inbox()
    with StopSignal() as stop:
        transport = RabbitMqTransport(settings.broker, inbox.put, name=f"{federation}-summing")
        try:
            telemetry = Telemetry(process="summing", federation=federation)
            service = StageService(
                members,
                key,
                transport,
                session=secrets.token_bytes(16),
                heartbeat_s=settings.broker.heartbeat_s,
                telemetry=telemetry,
            )
            broker = transport.connect()
            telemetry.note(note("stage_started", broker=broker, federation=federation))
            service.start()
            spare_collections()
            while not stop.requested:
                service.step(inbox.take(TICK_S), time.monotonic())
        finally:
            transport.close()
    telemetry.note(note("stage_stopped", counts=dict(telemetry.counts)))


class _Sessions:
    """What outlives a session: a process whose session was replaced stands by again, with another."""

    def __init__(self, settings: CoordinatorSettings, members: Membership, key: SigningKey) -> None:
        self._settings = with_preset(settings)
        self._members = members
        self._key = key
        self._workload = load_workload(self._settings.workload, self._settings.workload_options)
        self._plan = plan_of(self._settings, members.directory, self._workload)
        self._evaluator = Evaluator(self._workload, self._plan.float_buffers)
        self._files = ModelFiles(settings.output_dir, self._workload, self._plan.float_buffers)
        self._directory_path = settings.federation_dir / DIRECTORY_FILE
        self._directory_file = DirectoryFile(self._directory_path)
        self._telemetry = Telemetry(process="coordinator", federation=self._plan.federation)
        self._announced = False

    def run(self, stop: StopSignal) -> None:
        """Stand by, hold office, stand by, … until the run is over or the process is told to stop."""
        while (service := self._hold_session(stop)) is None:
            pass
        _say_goodbye(service)

    def _hold_session(self, stop: StopSignal) -> CoordinatorService | None:
        """One session to its end; None if another coordinator has taken over."""
        self._look_at_directory()
        inbox: Inbox[CoordinatorItem] = Inbox()
        output = EvaluationThread(self._evaluator, self._files, lambda finished: inbox.put([finished]))
        # Connections of its own: with them go the session's consumers, and what it had not published yet.
        transport = RabbitMqTransport(self._settings.broker, inbox.put, name=f"{self._plan.federation}-coordinator")
        drain_s = DRAIN_S
        try:
            service = self._make_service(transport, output)
            self._announce(transport.connect(), service)
            service.start()
            spare_collections()
            _loop(service, inbox, output, self._directory_file, stop)
        except Fenced as fenced:
            drain_s = 0.0
            self._telemetry.note(note("replaced", "warning", reason=str(fenced)))
            return None
        finally:
            transport.close(drain_s)
            output.close()
        return service

    def _look_at_directory(self) -> None:
        """A newer directory that the session before had not written to the log yet is this one's to write."""
        try:
            self._members.adopt(read_signed(self._directory_path))
        except DirectoryError as error:
            self._telemetry.note(note("directory_refused", "error", reason=str(error)))

    def _make_service(self, transport: RabbitMqTransport, output: EvaluationThread) -> CoordinatorService:
        return CoordinatorService(
            self._plan,
            self._members,
            self._key,
            transport,
            first_weights(self._settings.initial_weights, self._workload, self._plan.float_buffers),
            output,
            session=secrets.token_bytes(16),
            clock_us=lambda: time.time_ns() // 1000,
            telemetry=self._telemetry,
            sums_here="summing" in self._settings.roles,
        )

    def _announce(self, broker: str, service: CoordinatorService) -> None:
        if not self._announced:
            self._announced = True
            _announce(service, self._plan, broker, len(self._members.directory.active_clients()))


def _loop(
    service: CoordinatorService,
    inbox: Inbox[CoordinatorItem],
    output: EvaluationThread,
    file: DirectoryFile,
    stop: StopSignal,
) -> None:
    look_at = 0.0
    while service.finished is None and not stop.requested:
        items, now = inbox.take(TICK_S), time.monotonic()
        if now >= look_at:
            items += file.news()
            look_at = now + TICK_S
        service.step(items, now)
        output.check()


def _announce(service: CoordinatorService, plan: Plan, broker: str, clients: int) -> None:
    service.telemetry.note(
        note(
            "coordinator_started",
            federation=plan.federation,
            broker=broker,
            dimension=plan.dimension,
            values_per_update=plan.coordinate_count,
            bits=plan.bits,
            attack_odds=odds_table(clients, plan.group_size, plan.aggregation.trim),
            plan=plan.model_dump(mode="json"),
        )
    )
    for one in privacy_notes(plan, clients):
        service.telemetry.note(one)


def _say_goodbye(service: CoordinatorService) -> None:
    chain = service.log.chain
    service.telemetry.note(
        note(
            "coordinator_stopped",
            finished=service.finished is not None,
            reason=service.finished.reason if service.finished else "",
            version=chain.version if chain else None,
            weights_sha256=chain.weights_sha256.hex() if chain else None,
            counts=dict(service.telemetry.counts),
            messages_published=service.messages_published,
        )
    )
