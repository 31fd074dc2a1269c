"""Text encoders: tokens to one embedding per token.

Legend: B prompts, L tokens, D elements of one token's embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from distill_rt.core.condition import Condition
from distill_rt.core.optional import require


class ClipTextEncoder(nn.Module):
    """transformers `CLIPTextModel`: the last hidden state, after the final layer norm, as Stable Diffusion 1 and 2 use it.

    Args:
        backbone: `CLIPTextModel`.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, tokens_BL: Tensor) -> Tensor:
        """Embeddings (B, L, D) of tokens int64 (B, L)."""
        out: Tensor = self.backbone(tokens_BL).last_hidden_state
        return out

    def misfit(self, condition: Condition) -> str | None:
        """What of a contract's condition this encoder cannot do, or None."""
        config: Any = self.backbone.config
        if config.vocab_size != condition.vocab_size:
            return f"it knows {config.vocab_size} tokens, the contract {condition.vocab_size}"
        if config.hidden_size != condition.width:
            return f"its embeddings have {config.hidden_size} elements, the contract's {condition.width}"
        if config.max_position_embeddings < condition.num_tokens:
            return f"it takes {config.max_position_embeddings} tokens at most, the contract has {condition.num_tokens}"
        return None


def clip_text(config: Mapping[str, Any]) -> ClipTextEncoder:
    """transformers `CLIPTextModel` of a `CLIPTextConfig`."""
    transformers = require("transformers", extra="hf")
    errors = require("huggingface_hub.errors", extra="hf")
    try:
        checked = transformers.CLIPTextConfig(**config)
    except errors.StrictDataclassError as error:  # shares no base class with the errors of others
        raise ValueError(str(error)) from error
    return ClipTextEncoder(transformers.CLIPTextModel(checked))


TEXT_ENCODERS: Mapping[str, Callable[[Mapping[str, Any]], ClipTextEncoder]] = {"clip_text": clip_text}
"""Kind -> function of the configuration."""
