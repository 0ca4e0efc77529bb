"""A BERT sentence encoder in eighty lines: all that all-MiniLM-L6-v2 needs, in a form that exports.

Attention is `scaled_dot_product_attention` with an additive float mask, so that ONNX opset 23 keeps
it as one `Attention` node.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import gelu, normalize, scaled_dot_product_attention

VOCABULARY, POSITIONS, WIDTH, HEADS, LAYERS, INNER = 30522, 512, 384, 12, 6, 1536
"""Sizes, from the model's own config.json."""

EPSILON = 1e-12
"""layer_norm_eps of the model's config.json."""

MASKED = -1e4
"""Added to the score of a padding token: far below any real score, and finite in float16."""


class Layer(nn.Module):
    """One transformer layer, normalised after each residual as BERT is."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(WIDTH, WIDTH)
        self.key = nn.Linear(WIDTH, WIDTH)
        self.value = nn.Linear(WIDTH, WIDTH)
        self.output = nn.Linear(WIDTH, WIDTH)
        self.attention_norm = nn.LayerNorm(WIDTH, eps=EPSILON)
        self.expand = nn.Linear(WIDTH, INNER)
        self.shrink = nn.Linear(INNER, WIDTH)
        self.norm = nn.LayerNorm(WIDTH, eps=EPSILON)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """x float32 [B, L, 384], bias float32 [B, 1, L, L] -> float32 [B, L, 384]."""
        batch, length, _ = x.shape
        heads = (batch, length, HEADS, WIDTH // HEADS)
        q = self.query(x).view(heads).transpose(1, 2)
        k = self.key(x).view(heads).transpose(1, 2)
        v = self.value(x).view(heads).transpose(1, 2)
        mixed = scaled_dot_product_attention(q, k, v, attn_mask=bias)
        mixed = mixed.transpose(1, 2).reshape(batch, length, WIDTH)
        x = self.attention_norm(x + self.output(mixed))
        return self.norm(x + self.shrink(gelu(self.expand(x))))


class SentenceEncoder(nn.Module):
    """Tokens in, one unit-length vector per sentence out."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = nn.Embedding(POSITIONS, WIDTH)
        self.norm = nn.LayerNorm(WIDTH, eps=EPSILON)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """int64 [B, L] and int64 [B, L] (1 = token, 0 = padding) -> float32 [B, 384]."""
        length = input_ids.shape[1]
        mask = attention_mask.to(self.words.weight.dtype)
        x = self.norm(self.words(input_ids) + self.positions.weight[:length])
        bias = ((1.0 - mask) * MASKED)[:, None, None, :].expand(-1, 1, length, -1)
        for layer in self.layers:
            x = layer(x, bias)
        # The mean's divisor cancels when the vector is scaled to unit length, so a sum will do.
        return normalize((x * mask[:, :, None]).sum(dim=1), dim=1)

    def load_bert(self, weights: dict[str, Tensor]) -> None:
        """Take the weights of a Hugging Face `BertModel` state dict (float32)."""
        own = {
            # Every token here has type 0, so its embedding is part of the position's.
            "words.weight": weights["embeddings.word_embeddings.weight"],
            "positions.weight": weights["embeddings.position_embeddings.weight"]
            + weights["embeddings.token_type_embeddings.weight"][0],
            "norm.weight": weights["embeddings.LayerNorm.weight"],
            "norm.bias": weights["embeddings.LayerNorm.bias"],
        }
        renamed = {
            "query": "attention.self.query",
            "key": "attention.self.key",
            "value": "attention.self.value",
            "output": "attention.output.dense",
            "attention_norm": "attention.output.LayerNorm",
            "expand": "intermediate.dense",
            "shrink": "output.dense",
            "norm": "output.LayerNorm",
        }
        for index in range(LAYERS):
            for ours, theirs in renamed.items():
                for part in ("weight", "bias"):
                    source = f"encoder.layer.{index}.{theirs}.{part}"
                    own[f"layers.{index}.{ours}.{part}"] = weights[source]
        self.load_state_dict(own)
