"""What a test sees of its imaginary GPU."""

from __future__ import annotations

from dataclasses import dataclass, field

from fake_cuda import FakeCuda, FakeLauncher


@dataclass(kw_only=True)
class Machine:
    cuda: FakeCuda
    launchers: list[FakeLauncher] = field(default_factory=list)
