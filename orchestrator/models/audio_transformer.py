"""A small transformer over stretches of a log-mel spectrogram."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from orchestrator.config.model import AudioTransformer, AudioTransformerKwargs
from orchestrator.config.signature import Signature
from orchestrator.errors import ModelError
from orchestrator.models.base import make_body
from orchestrator.models.logmel import Cast, LogMel, sound
from orchestrator.models.vit import Blocks


class SpectrogramTransformer(nn.Module):
    """Each token is all bands of a stretch of frames; learned positions, encoder, mean, linear head."""

    takes_float32 = True

    def __init__(self, kwargs: AudioTransformerKwargs, rate: int, length: int, outputs: int) -> None:
        super().__init__()
        self.front, self.cast = LogMel(kwargs, rate, length), Cast()
        self.stretch = max(1, round(kwargs.patch_ms * rate / 1000 / self.front.hop))
        tokens = self.front.frames // self.stretch
        if tokens == 0:
            raise ModelError("a patch is longer than the sound", kwargs.patch_ms, "lower kwargs.patch_ms")
        self.patches = nn.Conv2d(1, kwargs.dim, (kwargs.mels, self.stretch), (1, self.stretch))
        self.positions = nn.Parameter(torch.empty(1, tokens, kwargs.dim))
        nn.init.trunc_normal_(self.positions, std=0.02)
        self.dropout = nn.Dropout(kwargs.dropout)
        self.encoder = Blocks(kwargs)
        self.head = nn.Linear(kwargs.dim, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[B, samples] -> [B, outputs]."""
        image = self.cast(self.front(x))[:, None]
        tokens = self.patches(image).flatten(2).transpose(1, 2) + self.positions
        out: Tensor = self.head(self.dropout(self.encoder(self.dropout(tokens))))
        return out


@make_body.register
def audio_transformer(settings: AudioTransformer, signature: Signature) -> nn.Module:
    """Gong et al. 2021, AST (https://arxiv.org/abs/2104.01778), with patches of whole frames.

    Raises:
        ModelError: the rows are not sound, or too short.
    """
    return SpectrogramTransformer(settings.kwargs, *sound(signature, "audio_transformer"), signature.outputs)
