"""Several processes that train together, as torchrun starts them, on the jobs that they are given one after the other.

A job holds the arguments of `train` or `distill`, and may say ``die_at`` (the step after which the main process gets SIGKILL)
or ``said`` (what it must be refused with).
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

RUN = """
import json, os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from distill_rt.core.errors import UsageError
from distill_rt.training.run import distill, train

jobs = json.loads(sys.argv[1])
if len(jobs) > 1:
    torch.distributed.init_process_group("gloo")
for job in jobs:
    job |= {key: Path(job[key]) for key in ("out", "teacher") if key in job}
    die_at = job.pop("die_at", None)

    def progress(phase, done, total, loss):
        if done == die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    said = job.pop("said", None)
    try:
        if "teacher" in job:
            distill(job.pop("method"), job.pop("teacher"), job.pop("out"), progress=progress, **job)
        else:
            train(job.pop("recipe"), job.pop("out"), progress=progress, **job)
    except UsageError as error:
        if said is None or said not in error.message:
            raise
        said = None
    assert said is None, "it was not refused"
"""


def start(num_processes: int, *jobs: dict[str, Any]) -> list[subprocess.Popen[str]]:
    """What torchrun does: processes that find each other by their environment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(num_processes)}
    text = json.dumps(jobs, default=str)
    return [
        subprocess.Popen(
            [sys.executable, "-P", "-c", RUN, text],
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(num_processes)
    ]


def together(num_processes: int, *jobs: dict[str, Any]) -> list[int]:
    """Exit codes of the processes; when one dies the others are ended, as torchrun does."""
    processes = start(num_processes, *jobs)
    errors = []
    try:
        while any(process.poll() is None for process in processes):
            if any(process.poll() not in (None, 0) for process in processes):
                time.sleep(0.2)
                for process in processes:
                    process.kill()
            time.sleep(0.05)
    finally:
        for process in processes:
            process.kill()
            errors.append(process.communicate()[1])
    codes = [process.returncode for process in processes]
    assert all(code == 0 for code in codes) or any("die_at" in job for job in jobs), "\n".join(errors)
    return codes


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path / "network0.safetensors")


def assert_same(a: Path, b: Path) -> None:
    """Equal up to the rounding of a sum in another order, which Adam enlarges where a gradient is nearly zero."""
    ours, theirs = (torch.cat([value.flatten() for _, value in sorted(weights(path).items())]) for path in (a, b))
    assert float((ours - theirs).norm() / theirs.norm()) < 1e-6
    assert float((ours - theirs).abs().max()) < 1e-5
