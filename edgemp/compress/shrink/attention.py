"""Attention that can be cut: `nn.MultiheadAttention` unfolded into four plain Linear layers."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from edgemp.compress.fake_quant import replaced
from edgemp.errors import UnsupportedModuleError


class PlainAttention(nn.Module):  # type: ignore[misc]
    """What `nn.MultiheadAttention` computes, with layers that can be pruned, factored and quantized.

    Called in the same way; the attention weights it returns are always None. `heads` may shrink.
    """

    # nn.TransformerEncoderLayer looks at these before it decides against its fused path.
    in_proj_bias = None
    _qkv_same_embed_dim = False

    def __init__(self, width: int, heads: int, batch_first: bool, bias: bool) -> None:
        super().__init__()
        self.heads, self.head_width, self.batch_first = heads, width // heads, batch_first
        self.query = nn.Linear(width, width, bias)
        self.key = nn.Linear(width, width, bias)
        self.value = nn.Linear(width, width, bias)
        self.output = nn.Linear(width, width, bias)

    @property
    def num_heads(self) -> int:
        """Heads that are left."""
        return self.heads

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, None]:
        """As `nn.MultiheadAttention.forward`, for batched inputs; returns (output, None)."""
        if not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, self.head_width)).transpose(1, 2)
            for layer, x in ((self.query, query), (self.key, key), (self.value, value))
        )
        mask = _mask(attn_mask, key_padding_mask, self.heads, q)
        mixed = scaled_dot_product_attention(q, k, v, attn_mask=mask)
        answer = self.output(mixed.transpose(1, 2).flatten(2))
        return (answer if self.batch_first else answer.transpose(0, 1)), None


def unfold(module: nn.Module) -> nn.Module:
    """A copy of `module` in which every `nn.MultiheadAttention` is a `PlainAttention` of equal result.

    Raises:
        UnsupportedModuleError: for attention with other key or value widths, added zero or bias
            tokens, which `PlainAttention` does not have.
    """
    plain = copy.deepcopy(module)
    for name, part in list(plain.named_modules()):
        if isinstance(part, nn.MultiheadAttention):
            plain = replaced(plain, name, _unfolded(part, name))
    for part in plain.modules():
        # The fast path for padding needs the fused modules.
        if isinstance(part, nn.TransformerEncoder):
            part.enable_nested_tensor = part.use_nested_tensor = False
    return plain


def _unfolded(part: nn.MultiheadAttention, name: str) -> PlainAttention:
    if not part._qkv_same_embed_dim or part.bias_k is not None or part.add_zero_attn:
        raise UnsupportedModuleError(
            f"{name}: MultiheadAttention with kdim, vdim, add_bias_kv or add_zero_attn cannot be unfolded"
        )
    bias = part.in_proj_bias is not None
    made = PlainAttention(part.embed_dim, part.num_heads, part.batch_first, bias)
    made.to(part.in_proj_weight.device, part.in_proj_weight.dtype)
    with torch.no_grad():
        for layer, weight in zip(
            (made.query, made.key, made.value), part.in_proj_weight.chunk(3), strict=True
        ):
            layer.weight.copy_(weight)
        made.output.weight.copy_(part.out_proj.weight)
        if bias:
            for layer, values in zip(
                (made.query, made.key, made.value), part.in_proj_bias.chunk(3), strict=True
            ):
                layer.bias.copy_(values)
            made.output.bias.copy_(part.out_proj.bias)
    made.train(part.training)
    return made


def _mask(
    attention: Tensor | None, padding: Tensor | None, heads: int, queries: Tensor
) -> Tensor | None:
    """Additive float mask, broadcastable to [B, heads, L, S]; torch's boolean masks forbid where True."""
    total = None
    if attention is not None:
        total = _additive(attention, queries)
        if total.dim() == 3:
            total = total.unflatten(0, (-1, heads))
    if padding is not None:
        hidden = _additive(padding, queries)[:, None, None, :]
        total = hidden if total is None else total + hidden
    return total


def _additive(mask: Tensor, queries: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(queries.dtype)
    return torch.zeros(mask.shape, dtype=queries.dtype, device=mask.device).masked_fill(
        mask, float("-inf")
    )
