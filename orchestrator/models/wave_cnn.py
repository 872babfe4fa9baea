"""Convolutions over a waveform."""

from __future__ import annotations

from torch import Tensor, nn

from orchestrator.config.model import WaveCnn, WaveCnnKwargs
from orchestrator.config.signature import Signature
from orchestrator.models.base import make_body
from orchestrator.models.logmel import Cast, Shift, loudness, sound


class WaveformCnn(nn.Module):
    """A wide convolution that learns its own filters, then narrow ones; the sound gets four times
    shorter in each.

    Convolutions are two-dimensional over images of height 1: int8 kernels exist for those alone.
    """

    takes_float32 = True

    def __init__(self, kwargs: WaveCnnKwargs, rate: int, length: int, outputs: int) -> None:
        super().__init__()
        first = max(4, round(kwargs.window_ms * rate / 1000))
        self.shift, self.cast = Shift(round(kwargs.shift_ms * rate / 1000)), Cast()
        layers: list[nn.Module] = []
        inputs = 1
        for number, width in enumerate(kwargs.widths):
            size, stride = (first, 4) if number == 0 else (3, 1)
            layers += [
                nn.Conv2d(inputs, width, (1, size), (1, stride), (0, size // 2), bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            ]
            length = (length + size // 2 * 2 - size) // stride + 1
            if number and length >= 4:
                layers.append(nn.MaxPool2d((1, 4)))
                length //= 4
            inputs = width
        self.convolutions = nn.Sequential(*layers)
        self.dropout = nn.Dropout(kwargs.dropout)
        self.head = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[B, samples] -> [B, outputs]."""
        wave = self.cast(self.shift(loudness(x)))[:, None, None, :]
        out: Tensor = self.head(self.dropout(self.convolutions(wave).mean((2, 3))))
        return out


@make_body.register
def wave_cnn(settings: WaveCnn, signature: Signature) -> nn.Module:
    """M5 of Dai et al. 2016 (https://arxiv.org/abs/1610.00087), small.

    Raises:
        ModelError: the rows are not sound.
    """
    return WaveformCnn(settings.kwargs, *sound(signature, "wave_cnn"), signature.outputs)
