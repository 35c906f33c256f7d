"""What an operator of a worker decides: whom it serves, where its state and data are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from shared.settings import ProcessSettings
from worker.policy import Policy


class WorkerSettings(ProcessSettings):
    """Settings of `comitia worker run`."""

    site: Annotated[str, Field(description="The site whose clients this worker serves.")] = "site-1"
    clients: Annotated[
        list[str],
        Field(
            description="Serve these clients, all of them and no others, from start to end. Empty: share clients out "
            "with all workers that have the same `state_dir`, as `client_ids` and `seats` say."
        ),
    ] = Field(default_factory=list)
    client_ids: Annotated[
        str,
        Field(
            description="The clients to share out: names, numbers (7 is client-007) and ranges (1-20), separated by "
            "commas. Empty: all of the site whose keys are here."
        ),
    ] = ""
    seats: Annotated[
        int | None, Field(ge=1, le=1024, description="How many of them to serve at most; empty: any number.")
    ] = None
    state_dir: Annotated[
        Path,
        Field(
            description="Holds one state directory per client; back it up never, lose it never. Workers that share "
            "clients out must have the same one, on one machine or on a file system with locks."
        ),
    ] = Path("state")
    data_dir: Annotated[
        Path | None, Field(description="Where clients keep their data, handed to the workload as data_dir/<client>.")
    ] = None
    workload: Annotated[
        str, Field(description="The workload that this worker agrees to run; the plan must name the same.")
    ] = "digits"
    device: Annotated[
        str, Field(description="Where torch trains: cpu, cuda, cuda:N or mps; refused at start if it is not there.")
    ] = "cpu"
    policy: Annotated[
        Policy, Field(description="What this worker demands of plan and groups before anything of its data leaves.")
    ] = Policy()
    torch_threads: Annotated[int, Field(ge=1, description="Threads of torch for training.")] = 1
    drain_s: Annotated[
        float,
        Field(
            ge=0,
            le=600,
            description="How long a process that is to end (SIGTERM), or a client that is to leave, waits for a group "
            "in progress (seconds).",
        ),
    ] = 20.0
    seed: Annotated[
        int | None,
        Field(
            ge=0,
            description="Makes training, rounding and the noise of privacy repeatable: for experiments only, since "
            "whoever knows it can subtract the noise.",
        ),
    ] = None
