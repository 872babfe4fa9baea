"""Models of sound: the spectrogram in their graph, and what training does to it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from orchestrator.config.model import AudioCnn, AudioCnnKwargs, LogMelKwargs
from orchestrator.errors import ModelError
from orchestrator.models.build import build
from orchestrator.models.logmel import LogMel, Mask, Shift, mel_bands, transform
from orchestrator.runtime.int8 import export
from tests.compression import toys

NAMES = ("audio_cnn", "audio_transformer", "wave_cnn")
SIGNATURE = toys.signature(toys.SOUND)
RATE, LENGTH = 8000, toys.SOUND[0]


@pytest.mark.parametrize("name", NAMES)
def test_sound_and_silence_have_answers_that_an_exported_graph_gives_too(name: str) -> None:
    network = toys.toy(name)[0]
    rows = torch.from_numpy(toys.rows(toys.SOUND, 6).inputs)
    rows[0] = 0
    rows[1] = 2**15 - 1
    graph = export(network, rows).module()
    with torch.no_grad():
        answers = network(rows)
        assert answers.isfinite().all()
        torch.testing.assert_close(graph(rows), answers, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_every_parameter_and_scaled_rows_fit_too(name: str) -> None:
    scaled = SIGNATURE.model_copy(update={"mean": (2.0,), "std": (900.0,)})
    network = build(toys.MODELS[name][0], scaled, seed=0)
    network(torch.from_numpy(toys.rows(toys.SOUND, 6).inputs)).square().sum().backward()
    assert not [key for key, value in network.named_parameters() if value.grad is None]


@pytest.mark.parametrize("window", [10, 256])
def test_two_products_are_the_power_spectrum(window: int) -> None:
    even, odd = transform(window)
    samples = np.random.default_rng(0).normal(size=window)
    half = window // 2
    left, right = samples[:half], samples[half:][::-1]
    power = ((left + right) @ even) ** 2 + ((left - right) @ odd) ** 2
    place = np.arange(window) + 0.5 - half
    hann = np.cos(np.pi * place / window) ** 2
    wanted = np.abs(np.fft.rfft(samples * hann)) ** 2 / (hann**2).sum()
    np.testing.assert_allclose(power, wanted, rtol=1e-9)


@pytest.mark.parametrize("hertz", [300, 1200, 3000])
def test_a_tone_is_loudest_in_its_band(hertz: int) -> None:
    front = LogMel(LogMelKwargs(mels=24), RATE, LENGTH).eval()
    tone = 8000 * torch.sin(2 * torch.pi * hertz * torch.arange(LENGTH) / RATE)
    found = front(tone.to(torch.int16)[None])[0]
    assert found.shape == (24, front.frames)
    bands = mel_bands(RATE, front.window, 24)
    wanted = bands[round(hertz / RATE * front.window)].argmax()
    assert (found.argmax(0) == wanted).all()


@pytest.mark.parametrize(("rate", "window", "mels"), [(8000, 64, 40), (16000, 512, 64), (8000, 256, 4)])
def test_every_mel_band_hears_something(rate: int, window: int, mels: int) -> None:
    bands = mel_bands(rate, window, mels)
    assert bands.shape == (window // 2 + 1, mels)
    np.testing.assert_allclose(bands.sum(0), 1.0)
    assert (bands >= 0).all()


def test_training_moves_sound_and_hides_bands_and_frames() -> None:
    torch.manual_seed(0)
    shift, mask = Shift(5), Mask(4, 6)
    sound, image = torch.arange(1.0, 21.0).expand(50, 20), torch.ones(50, 10, 12)
    moved, hidden = shift(sound), mask(image)
    starts = {int(row[row > 0].min() - (row > 0).nonzero().min()) for row in moved}
    assert min(starts) >= -4
    assert max(starts) <= 6
    assert len(starts) > 5
    bands, frames = (hidden.amax(2) == 0).sum(1), (hidden.amax(1) == 0).sum(1)
    assert int(bands.max()) in (3, 4)
    assert int(frames.max()) in (5, 6)
    assert shift.eval()(sound) is sound
    assert mask.eval()(image) is image


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ModelError, match=r"audio_cnn needs sound"):
        build(AudioCnn(), toys.signature((6,)))
    with pytest.raises(ModelError, match=r"window of 500\.0 ms is longer than the sound: 1600 samples"):
        build(AudioCnn(kwargs=AudioCnnKwargs(window_ms=500.0)), SIGNATURE)
