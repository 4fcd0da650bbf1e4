"""One exact saving for CLIP's vision transformer: its last block is needed at the class token only."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class ClassTokenBlock(nn.Module):
    """open_clip's ``ResidualAttentionBlock``, computed at the class token only.

    The class token's query against all keys and values gives its row of the full attention, so what comes out is the
    block's own first token to rounding; the other queries and the MLP on the other tokens are left out.

    Args:
        block: the block whose weights are used.
    """

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: torch.Tensor, *unused: Any, **masks: Any) -> torch.Tensor:
        """(B, T, width) tokens -> (B, 1, width): the class token; vision blocks have no masks."""
        block = self.block
        keys = block.ln_1(x)
        token = x[:, :1] + block.ls_1(block.attn(keys[:, :1], keys, keys, need_weights=False)[0])
        return token + block.ls_2(block.mlp(block.ln_2(token)))


def keep_class_token(model: Any) -> bool:
    """Makes the last block of ``model.visual`` compute its class token only, which is all that is pooled.

    In a 4-layer model that saves a quarter of the picture encoder's time, in ViT-L/14 about 3 %.

    Args:
        model: an open_clip model; changed in place when its layout is the one known here.

    Returns:
        Whether it was: open_clip's ``VisionTransformer`` of plain blocks, batch first, pooled at the class token.
    """
    visual = getattr(model, "visual", None)
    blocks: Any = getattr(getattr(visual, "transformer", None), "resblocks", ())
    # The first block must stay as it is: open_clip asks it for the weights' type.
    if len(blocks) < 2 or type(blocks[-1]).__name__ != "ResidualAttentionBlock":
        return False
    plain = (
        getattr(visual, "pool_type", None) == "tok"
        and getattr(visual, "attn_pool", True) is None
        and not getattr(visual, "output_tokens", True)
        and getattr(blocks[-1].attn, "batch_first", False)
    )
    if plain:
        blocks[-1] = ClassTokenBlock(blocks[-1])
    return plain
