"""BERT's encoder from a configuration object of `transformers`: nothing is downloaded, any size."""

from __future__ import annotations

from torch import Tensor, nn
from transformers import BertConfig, BertModel

from orchestrator.config.signature import Signature
from orchestrator.models.text import text_view


class Encoder(nn.Module):
    """The mean of the encoder's outputs over a text's tokens, and a linear head on it."""

    def __init__(self, signature: Signature, view: str | None, dim: int, depth: int, heads: int) -> None:
        super().__init__()
        self.view = text_view(signature, "encoder:encoder", view, ("tokens",))
        config = BertConfig(
            vocab_size=self.view.size,
            max_position_embeddings=self.view.length,
            hidden_size=dim,
            intermediate_size=4 * dim,
            num_hidden_layers=depth,
            num_attention_heads=heads,
        )
        self.encoder = BertModel(config, add_pooling_layer=False)
        self.head = nn.Linear(dim, signature.outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Numbers of tokens int32 [B, L] -> logits [B, K]; 0 is padding."""
        ids = self.view(x)
        seen = ids.ne(0).to(self.head.weight.dtype)
        hidden = self.encoder(input_ids=ids, attention_mask=seen).last_hidden_state
        logits: Tensor = self.head(
            (hidden * seen[:, :, None]).sum(1) / seen.sum(1, keepdim=True).clamp_min(1)
        )
        return logits


def encoder(
    signature: Signature, view: str | None = None, dim: int = 32, depth: int = 2, heads: int = 4
) -> nn.Module:
    """An encoder of `depth` layers; `dim` 768, `depth` 12 and `heads` 12 are BERT-base's sizes."""
    return Encoder(signature, view, dim, depth, heads)
