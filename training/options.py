"""What every training run can be told, whatever it trains."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypedDict

from distill_rt.training.device import DeviceChoice
from distill_rt.training.journal import JournalOptions
from distill_rt.training.parallel import Parallel
from distill_rt.training.progress import Progress


class RunOptions(TypedDict, total=False):
    """What `train` and `distill` (`distill_rt.training.run`) have in common; every key may be left out."""

    seed: int
    """Of initial weights, data order and training noise, 0 to 2**64 - 1 (0)."""
    resume: bool
    """Go on from the checkpoint if there is one."""
    force: bool
    """Replace the student that stands at `out`, and start anew unless `resume`."""
    checkpoint_every: int
    """Training steps between two checkpoints."""
    keep_every: int
    """Training steps of the last phase between two weights that are kept in ``<out>.weights`` for `combine`, 0 for none (0)."""
    accumulate: int
    """Parts that each process takes its share of a batch in (1): less memory, more time."""
    precision: Literal["fp32", "bf16"]
    """Of the networks' evaluations; weights stay float32 (``fp32``)."""
    compile: bool
    """Run the networks through torch.compile (False)."""
    checkpoint_activations: bool
    """Compute the inside of every block again in the backward pass (False): less memory, more time."""
    ema_power: float | None
    """gamma of a power-function average, instead of the method's own average (None)."""
    parallel: Parallel
    """Of several processes (``ddp``): all weights in each, ``fsdp`` a part of them in each; ``none`` is for one."""
    device: DeviceChoice
    """Where to compute; ``auto``, the default, is a GPU where torch sees one."""
    dry_run: bool
    """Check everything, hand back the frozen configuration, write nothing."""
    autoencoder: Path | None
    """Of a teacher that works on latents: the directory of the diffusers autoencoder that makes them of images."""
    latents: Path | None
    """Where the latents of images of one's own are kept for later runs (beside `out`, as long as the run lasts)."""
    journal: JournalOptions | None
    """Where to leave figures and samples (`distill_rt.training.journal`)."""
    progress: Progress | None
    """Called after every training step."""
