"""Which part of the big network a part of the smaller one was."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from distill_rt.core.spec import NetworkSpec
from distill_rt.training.smaller.layout import stream
from distill_rt.training.smaller.spec import DEPTH_KEY, unet_setting


@dataclass(frozen=True, kw_only=True, slots=True)
class Tap:
    """A module of the smaller network whose output is compared.

    Args:
        of: the module of the big network that it answers for.
        group: of the channels of both outputs (`layout`); None where nothing shrinks.
    """

    of: str
    group: str | None


class Origin:
    """Names of the smaller network to names of the big one.

    A UNet's stage keeps its first residual blocks, an up stage also its last, which reads the stage's first skip connection
    (Kim et al. 2023, figure 3). Networks without stages keep the first of every pair.
    """

    def __init__(self, big: NetworkSpec, small: NetworkSpec) -> None:
        self.big, self.small = big, small
        if big.kind == "unet2d":
            self.last = unet_setting(small, "layers_per_block")
            self.last_of_big = unet_setting(big, "layers_per_block")
        else:
            key, default = DEPTH_KEY[big.kind]
            self.depth = big.config.get(key, default)
            self.num_blocks = small.config.get(key, default)
            self.every = 2 if self.num_blocks < self.depth else 1

    def of(self, name: str) -> str:
        """The name in the big network of a module or tensor of the smaller one."""
        parts = name.split(".")
        for i, (part, index) in enumerate(itertools.pairwise(parts), start=1):
            if self.big.kind == "unet2d":
                if "up_blocks" in parts and part in ("resnets", "attentions") and int(index) == self.last:
                    parts[i] = str(self.last_of_big)
            elif part in ("blocks", "transformer_blocks"):
                parts[i] = str(self.every * int(index))
        return ".".join(parts)

    def taps(self) -> dict[str, Tap]:
        """Ends of stages; in networks without stages ends of blocks, where one that stands for a pair answers for its end."""
        if self.big.kind == "unet2d":
            channels = unet_setting(self.big, "block_out_channels")
            widths = {f"down_blocks.{i}": width for i, width in enumerate(channels)}
            widths |= {f"up_blocks.{i}": width for i, width in enumerate(reversed(channels))}
            if unet_setting(self.small, "mid_block_type") is not None:
                widths["mid_block"] = channels[-1]
            return {f"backbone.{n}": Tap(of=f"backbone.{n}", group=stream(width)) for n, width in widths.items()}
        stem, group = ("blocks", "stream") if self.big.kind == "mlp" else ("net.transformer_blocks", None)
        ends = [min(self.every * (i + 1), self.depth) - 1 for i in range(self.num_blocks)]
        return {f"backbone.{stem}.{i}": Tap(of=f"backbone.{stem}.{end}", group=group) for i, end in enumerate(ends)}
