"""Networks of `transformers`, built from a configuration object: nothing is downloaded."""

from __future__ import annotations

from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from orchestrator.config.signature import Signature
from orchestrator.models.text import text_view


class Logits(nn.Module):
    """`transformers` answers with an object; the orchestrator wants the logits alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Scaled images [B, C, H, W] -> logits [B, K]."""
        logits: Tensor = self.model(pixel_values=x).logits
        return logits


def vit(signature: Signature, dim: int = 32, depth: int = 2, heads: int = 4, patch: int = 4) -> nn.Module:
    """A small ViT for square images."""
    channels, size, _ = signature.input_shape
    config = ViTConfig(
        image_size=size,
        patch_size=patch,
        num_channels=channels,
        hidden_size=dim,
        intermediate_size=2 * dim,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    config.num_labels = signature.outputs
    return Logits(ViTForImageClassification(config))


def resnet(signature: Signature, width: int = 16) -> nn.Module:
    """A small ResNet of two stages."""
    config = ResNetConfig(
        num_channels=signature.input_shape[0],
        embedding_size=width,
        hidden_sizes=[width, 2 * width],
        depths=[1, 1],
        layer_type="basic",
    )
    config.num_labels = signature.outputs
    return Logits(ResNetForImageClassification(config))


class Text(nn.Module):
    """BERT's encoder over one segment of the rows, mean over its tokens, linear head."""

    def __init__(self, signature: Signature, view: str | None, dim: int, depth: int, heads: int) -> None:
        super().__init__()
        self.view = text_view(signature, "hugging_face:bert", view, ("tokens",))
        config = BertConfig(
            vocab_size=self.view.size,
            max_position_embeddings=self.view.length,
            hidden_size=dim,
            intermediate_size=2 * dim,
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
        mean = (hidden * seen[:, :, None]).sum(1) / seen.sum(1, keepdim=True).clamp_min(1)
        logits: Tensor = self.head(mean)
        return logits


def bert(
    signature: Signature, view: str | None = None, dim: int = 64, depth: int = 2, heads: int = 4
) -> nn.Module:
    """A small BERT for text."""
    return Text(signature, view, dim, depth, heads)
