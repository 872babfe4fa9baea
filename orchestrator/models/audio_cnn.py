"""Convolutions over a log-mel spectrogram."""

from __future__ import annotations

from torch import Tensor, nn

from orchestrator.config.model import AudioCnn, AudioCnnKwargs
from orchestrator.config.signature import Signature
from orchestrator.models.base import make_body
from orchestrator.models.logmel import Cast, LogMel, sound


class SpectrogramCnn(nn.Module):
    """Spectrogram as an image, blocks of convolution, norm, ReLU and pool, mean over time, linear head."""

    takes_float32 = True

    def __init__(self, kwargs: AudioCnnKwargs, rate: int, length: int, outputs: int) -> None:
        super().__init__()
        self.front, self.cast = LogMel(kwargs, rate, length), Cast()
        layers: list[nn.Module] = []
        inputs, bands, frames = 1, kwargs.mels, self.front.frames
        for width in kwargs.widths:
            layers += [
                nn.Conv2d(inputs, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            ]
            if min(bands, frames) >= 2:
                layers.append(nn.MaxPool2d(2))
                bands, frames = bands // 2, frames // 2
            inputs = width
        self.convolutions = nn.Sequential(*layers)
        # What frequency a sound has matters, when it comes does not.
        self.mix = nn.Conv2d(inputs, 2 * inputs, (bands, 1), bias=False)
        self.norm = nn.BatchNorm2d(2 * inputs)
        self.relu = nn.ReLU()
        self.dropout = nn.Dropout(kwargs.dropout)
        self.head = nn.Linear(2 * inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[B, samples] -> [B, outputs]."""
        image = self.cast(self.front(x))[:, None]
        found = self.relu(self.norm(self.mix(self.convolutions(image))))
        out: Tensor = self.head(self.dropout(found.mean((2, 3))))
        return out


@make_body.register
def audio_cnn(settings: AudioCnn, signature: Signature) -> nn.Module:
    """A plain network as in Hershey et al. 2017 (https://arxiv.org/abs/1609.09430), small.

    Raises:
        ModelError: the rows are not sound, or too short.
    """
    return SpectrogramCnn(settings.kwargs, *sound(signature, "audio_cnn"), signature.outputs)
