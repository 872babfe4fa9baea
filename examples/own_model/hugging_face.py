"""Networks of `transformers`, built from a configuration object: nothing is downloaded."""

from __future__ import annotations

from torch import Tensor, nn
from transformers import ResNetConfig, ResNetForImageClassification, ViTConfig, ViTForImageClassification

from orchestrator.config.signature import Signature


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
