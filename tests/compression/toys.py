"""Small models, rows and stored parents that the tests of compression and runtime share."""

from __future__ import annotations

import copy
import importlib
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from orchestrator.compression.plan import Context, State
from orchestrator.config.encoding import (
    AudioEncoding,
    Category,
    Encoding,
    NgramHashes,
    Number,
    TableEncoding,
    TextEncoding,
    Tokens,
)
from orchestrator.config.model import (
    Airbench,
    AirbenchKwargs,
    AudioCnn,
    AudioCnnKwargs,
    AudioTransformer,
    AudioTransformerKwargs,
    Cnn,
    CnnKwargs,
    FtTransformer,
    FtTransformerKwargs,
    ImportedModel,
    Mlp,
    MlpKwargs,
    ModelSettings,
    ResNet,
    ResNet9,
    ResNet9Kwargs,
    ResNetKwargs,
    TextCnn,
    TextCnnKwargs,
    TextNgrams,
    TextNgramsKwargs,
    TextTransformer,
    TextTransformerKwargs,
    Vit,
    VitKwargs,
    WaveCnn,
    WaveCnnKwargs,
)
from orchestrator.config.signature import Signature
from orchestrator.data.dataset import Part
from orchestrator.models.build import build
from orchestrator.models.text import text_view
from orchestrator.runtime.rebuild import tensors_of
from orchestrator.store.artifacts import Draft
from orchestrator.store.store import Store

CLASSES = 5
_SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
"""Of the models of `transformers`."""

TEXT, SOUND, TABLE = (22,), (1600,), (5,)
ENCODINGS: dict[tuple[int, ...], Encoding] = {
    TEXT: TextEncoding(
        segments=(
            NgramHashes(name="pieces", length=12, size=64),
            Tokens(name="words", length=10, size=50, tokenizer="{}"),
        )
    ),
    SOUND: AudioEncoding(rate=8000, length=1600),
    TABLE: TableEncoding(
        columns=(
            Number(name="a", fill=0.0),
            Category(name="b", values=("v", "w", "x", "y", "z")),
            Number(name="c", fill=0.0),
            Category(name="d", values=("u",)),
            Number(name="e", fill=0.0),
        )
    ),
}
"""Of rows that are no images and no plain features, by their shape."""

MODELS: dict[str, tuple[ModelSettings, tuple[int, ...]]] = {
    "mlp": (Mlp(kwargs=MlpKwargs(widths=(32, 16))), (12,)),
    "cnn": (Cnn(kwargs=CnnKwargs(channels=(8, 16), hidden=16)), (1, 8, 8)),
    "resnet": (ResNet(kwargs=ResNetKwargs(depth=8, width=8)), (3, 16, 16)),
    "resnet9": (ResNet9(kwargs=ResNet9Kwargs(width=8)), (3, 16, 16)),
    "mirror": (ResNet9(kwargs=ResNet9Kwargs(width=8, whiten=True, mirror=True)), (3, 16, 16)),
    "airbench": (Airbench(kwargs=AirbenchKwargs(widths=(8, 16))), (3, 16, 16)),
    "vit": (Vit(kwargs=VitKwargs(patch=8, dim=16, depth=1, heads=2)), (3, 16, 16)),
    "text_ngrams": (TextNgrams(kwargs=TextNgramsKwargs(dim=16, hidden=16)), TEXT),
    "text_cnn": (TextCnn(kwargs=TextCnnKwargs(dim=16, widths=(1, 3), channels=16)), TEXT),
    "text_transformer": (TextTransformer(kwargs=TextTransformerKwargs(dim=16, depth=1, heads=2)), TEXT),
    "audio_cnn": (AudioCnn(kwargs=AudioCnnKwargs(mels=16, widths=(8, 16))), SOUND),
    "audio_transformer": (AudioTransformer(kwargs=AudioTransformerKwargs(mels=16, dim=16, depth=1)), SOUND),
    "wave_cnn": (WaveCnn(kwargs=WaveCnnKwargs(widths=(8, 16))), SOUND),
    "ft_transformer": (FtTransformer(kwargs=FtTransformerKwargs(dim=16, depth=1)), TABLE),
    "table_mlp": (Mlp(kwargs=MlpKwargs(widths=(32, 16))), TABLE),
}


def signature(shape: tuple[int, ...], task: str = "classification") -> Signature:
    """Images where `shape` has three sizes; text, sound or a table where it is one of `ENCODINGS`; else
    features."""
    encoding, dtype = ENCODINGS.get(shape), _dtype(shape)
    scale: dict[str, Any] = {"mean": (120.0,) * shape[0], "std": (60.0,) * shape[0]}
    if isinstance(encoding, TableEncoding):
        numbers = [isinstance(column, Number) for column in encoding.columns]
        scale = {"mean": [120.0 * one for one in numbers], "std": [60.0 if one else 1.0 for one in numbers]}
    elif encoding is not None:
        scale = {"mean": (), "std": ()}
    if task == "regression":
        scale |= {"target_mean": (3.0,) * CLASSES, "target_std": (2.0,) * CLASSES}
    return Signature(
        task="regression" if task == "regression" else "classification",
        input_shape=shape,
        input_dtype=dtype,
        outputs=CLASSES,
        encoding=encoding,
        **scale,
    )


def _dtype(shape: tuple[int, ...]) -> Any:
    known: dict[tuple[int, ...], str] = {TEXT: "int32", SOUND: "int16"}
    return known.get(shape, "uint8" if len(shape) == 3 else "float32")


def rows(shape: tuple[int, ...], count: int = 64, seed: int = 0) -> Part:
    """Rows whose class is seen in their mean, their tokens, their pitch or a category."""
    random = np.random.default_rng(seed)
    targets = random.integers(0, CLASSES, count)
    if shape == TEXT:
        found = np.concatenate([_texts(random, targets, 12, 64), _texts(random, targets, 10, 50)], axis=1)
        return Part(found, targets, np.arange(count))
    if shape == SOUND:
        time = np.arange(shape[0]) / 8000
        wave = 3000 * np.sin(2 * np.pi * 400 * (1 + targets[:, None]) * time)
        noisy = wave + random.normal(0, 300, (count, *shape))
        return Part(noisy.astype(np.int16), targets, np.arange(count))
    values = random.normal(60 + 30 * targets.reshape(-1, *(1 for _ in shape)), 40, (count, *shape)).clip(
        0, 255
    )
    inputs = values.astype(np.uint8 if len(shape) == 3 else np.float32)
    if shape == TABLE:
        inputs[:, 1], inputs[:, 3] = targets + 1, random.integers(0, 2, count)
    return Part(inputs, targets, np.arange(count))


def _texts(
    random: np.random.Generator, targets: NDArray[np.int64], length: int, size: int
) -> NDArray[np.int32]:
    """Random tokens, half of them the class's own, of random number; what is behind them is padding."""
    tokens = random.integers(2 + CLASSES, size, (len(targets), length))
    tokens = np.where(random.random(tokens.shape) < 0.5, 2 + targets[:, None], tokens)
    ends = random.integers(1, length + 1, (len(targets), 1))
    return np.where(np.arange(length) < ends, tokens, 0).astype(np.int32)


def model(settings: ModelSettings, of: Signature, allowed: tuple[str, ...] = ()) -> nn.Module:
    """In eval mode, with batch statistics as if it had been trained."""
    module = build(settings, of, seed=1, allowed=allowed).eval()
    generator = torch.Generator().manual_seed(2)
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            for tensor, low, high in (
                (part.running_mean, -0.2, 0.2),
                (part.running_var, 0.5, 1.5),
                (part.weight, 0.5, 1.5),
                (part.bias, -0.2, 0.2),
            ):
                assert tensor is not None
                tensor.data.uniform_(low, high, generator=generator)
    return module


def settled(module: nn.Module, part: Part) -> nn.Module:
    """With the batch statistics of these rows, in place: what `model` makes up is far from those of a deep
    network, and recovery would spend its steps on finding them."""
    norms = [one for one in module.modules() if isinstance(one, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
    with torch.no_grad():
        module.train()(torch.from_numpy(part.inputs))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return module.eval()


def toy(name: str) -> tuple[nn.Module, Signature, ModelSettings]:
    """One of `MODELS`."""
    settings, shape = MODELS[name]
    return model(settings, signature(shape)), signature(shape), settings


def imported(name: str, shape: tuple[int, ...]) -> tuple[nn.Module, Signature, ModelSettings]:
    """A module of this file, as a user's own model."""
    settings, of = ImportedModel(factory=f"{__name__}:{name}"), signature(shape)
    return model(settings, of, (settings.factory,)), of, settings


def need_timm() -> None:
    """Skip a test where `timm` is not there, which is optional, or cannot be imported."""
    try:
        importlib.import_module("timm")
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision that does not fit torch
        pytest.skip(f"timm cannot be imported: {error}")


def near(module: nn.Module) -> nn.Module:
    """A copy whose weights differ a little, as after another fine-tuning."""
    other = copy.deepcopy(module)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.01)
    return other


def put(store: Store, module: nn.Module, of: Signature, settings: ModelSettings) -> str:
    """Store a model as if it had been trained."""
    return store.put_artifact(Draft(model=settings, signature=of, data="toy", seed=1), tensors_of(module))


def context(shape: tuple[int, ...], **changes: Any) -> Context:
    """Rows for every step."""
    part = rows(shape)
    given: dict[str, Any] = {"seed": 0, "calibration": part.inputs, "train": part, "validation": part}
    return Context(**given | changes)


def state(module: nn.Module, of: Signature) -> State:
    """A model before the first step of a plan."""
    return State(module, of, lambda: module)


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(width, width)
        self.second = nn.Linear(width, width)
        self.second.weight = self.first.weight
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """[B, width] -> [B, CLASSES]."""
        out: Tensor = self.head(functional.relu(self.second(functional.relu(self.first(x)))))
        return out


class Recurrent(nn.Module):
    """An LSTM over the features."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(1, 8, batch_first=True)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """[B, F] -> [B, CLASSES]."""
        out: Tensor = self.head(self.lstm(x.unsqueeze(-1))[0][:, -1])
        return out


class Functional(nn.Module):
    """A linear without a module, on rows of tokens [B, T, C]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(16, width) * 0.2)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """[B, width] -> [B, CLASSES]."""
        out: Tensor = self.head(functional.relu(functional.linear(x, self.weight)))
        return out


class ThreeDimensional(nn.Module):
    """Linears on three-dimensional inputs."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.first = nn.Linear(side, 16)
        self.second = nn.Linear(16, 8)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 1, S, S] -> [B, CLASSES]."""
        out: Tensor = self.head(self.second(functional.relu(self.first(x.flatten(1, 2)))).mean(1))
        return out


def tied(signature: Signature) -> nn.Module:
    """Model factory."""
    return Tied(signature.input_shape[0])


def recurrent(signature: Signature) -> nn.Module:  # noqa: ARG001
    """Model factory."""
    return Recurrent()


def functional_linear(signature: Signature) -> nn.Module:
    """Model factory."""
    return Functional(signature.input_shape[0])


def tokens(signature: Signature) -> nn.Module:
    """Model factory."""
    return ThreeDimensional(signature.input_shape[1])


class _Chunked(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.both = nn.Linear(width, 24)
        self.second = nn.Linear(12, 16)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.both(x).chunk(2, dim=1)
        out: Tensor = self.head(functional.relu(self.second(value * gate.sigmoid())))
        return out


def chunked(signature: Signature) -> nn.Module:
    """Model factory: a gated linear unit, whose layer is cut into two halves."""
    return _Chunked(signature.input_shape[0])


class _FusedHeads(nn.Module):
    """Attention with one layer for queries, keys and values, and the number of heads in the forward alone."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(channels, 16, 4, 4)
        self.qkv = nn.Linear(16, 48)
        self.out = nn.Linear(16, 16)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        rows, count, width = tokens.shape
        q, k, v = self.qkv(tokens).reshape(rows, count, 3, 4, width // 4).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(rows, count, width)
        out: Tensor = self.head(self.out(mixed).mean(1))
        return out


def fused_heads(signature: Signature) -> nn.Module:
    """Model factory."""
    return _FusedHeads(signature.input_shape[0])


class _Einsum(nn.Module):
    """Attention by einsum, and a product with a parameter."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.first = nn.Linear(features, 48)
        self.mix = nn.Parameter(torch.randn(16, 16, generator=torch.Generator().manual_seed(0)) / 4)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.first(x).relu().reshape(-1, 3, 16)
        scores = torch.einsum("btc,bsc->bts", tokens, tokens).softmax(-1)
        out: Tensor = self.head((torch.einsum("bts,bsc->btc", scores, tokens) @ self.mix).mean(1))
        return out


def einsum(signature: Signature) -> nn.Module:
    """Model factory."""
    return _Einsum(signature.input_shape[0])


class _TorchEncoder(nn.Module):
    """Patches and `nn.TransformerEncoder`, which torch runs as one operator in eval mode."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, 16, 8, 8)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32, 0.0, batch_first=True), 2)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.encoder(self.patches(x).flatten(2).transpose(1, 2)).mean(1))
        return out


def torch_encoder(signature: Signature) -> nn.Module:
    """Model factory."""
    return _TorchEncoder(signature.input_shape[0])


class _HuggingFaceVit(nn.Module):
    def __init__(self, side: int) -> None:
        super().__init__()
        config = transformers.ViTConfig(image_size=side, patch_size=8, **_SIZES)
        self.encoder = transformers.ViTModel(config, add_pooling_layer=False)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.encoder(pixel_values=x).last_hidden_state[:, 0])
        return out


class _HuggingFaceEncoder(nn.Module):
    """Each feature is a token."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(1, 16)
        self.encoder = transformers.BertModel(
            transformers.BertConfig(vocab_size=2, **_SIZES), add_pooling_layer=False
        )
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x.unsqueeze(-1))
        out: Tensor = self.head(self.encoder(inputs_embeds=tokens).last_hidden_state.mean(1))
        return out


def hugging_face_vit(signature: Signature) -> nn.Module:
    """Model factory: a vision model of `transformers`, built from its config."""
    return _HuggingFaceVit(signature.input_shape[1])


def hugging_face_encoder(signature: Signature) -> nn.Module:  # noqa: ARG001
    """Model factory: an encoder of `transformers`, built from its config."""
    return _HuggingFaceEncoder()


class _HuggingFaceText(nn.Module):
    """A text encoder of `transformers` that sees tokens as our own models do."""

    def __init__(self, of: Signature) -> None:
        super().__init__()
        self.view = text_view(of, "hugging_face_text", "words", ("tokens",))
        config = transformers.BertConfig(vocab_size=self.view.size, max_position_embeddings=16, **_SIZES)
        self.encoder = transformers.BertModel(config, add_pooling_layer=False)
        self.head = nn.Linear(16, of.outputs)

    def forward(self, x: Tensor) -> Tensor:
        ids = self.view(x)
        seen = ids.ne(0).to(self.head.weight.dtype)
        hidden = self.encoder(input_ids=ids, attention_mask=seen).last_hidden_state
        out: Tensor = self.head((hidden * seen[:, :, None]).sum(1) / seen.sum(1, keepdim=True))
        return out


def hugging_face_text(signature: Signature) -> nn.Module:
    """Model factory: a text encoder of `transformers`, built from its config."""
    return _HuggingFaceText(signature)


def grouped(signature: Signature) -> nn.Module:
    """Model factory: grouped and depthwise convolutions and a group norm."""
    return nn.Sequential(
        nn.Conv2d(signature.input_shape[0], 16, 3, padding=1),
        nn.GroupNorm(2, 16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1, groups=16),
        nn.ReLU(),
        nn.Conv2d(16, 24, 3, padding=1, groups=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, CLASSES),
    )


def convolutions_only(signature: Signature) -> nn.Module:
    """Model factory: no linear layer."""
    return nn.Sequential(
        nn.Conv2d(signature.input_shape[0], 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, CLASSES, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


class _ReluSum(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.first(x))
        out: Tensor = self.head((x + functional.relu(self.second(x))).mean((2, 3)))
        return out


def relu_sum(signature: Signature) -> nn.Module:
    """Model factory: a residual sum of a ReLU's output."""
    return _ReluSum(signature.input_shape[0])


class _Embedded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(64, 16)
        self.block = nn.Linear(16, 16)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embedding(x.clamp(0, 63)).mean(1)
        out: Tensor = self.head(tokens + functional.relu(self.block(tokens)))
        return out


def embedded(signature: Signature) -> nn.Module:  # noqa: ARG001
    """Model factory: an embedding whose features go on beside a block."""
    return _Embedded()


def one_linear(signature: Signature) -> nn.Module:
    """Model factory: nothing but the output layer."""
    return nn.Linear(signature.input_shape[0], CLASSES)


def branching(signature: Signature) -> nn.Module:
    """Model factory: its forward depends on the data, so it cannot be exported."""
    return _Branching(signature.input_shape[0])


class _Branching(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(x)
        return out if float(out.sum()) > 0 else -out


class _Positions(nn.Module):
    """Numbers its tokens as RoBERTa does, by a sum and a product of integers."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(256, 16)
        self.places = nn.Embedding(16, 16)
        self.block = nn.Linear(16, 16)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.long().clamp(0, 255)
        seen = tokens.ne(0).int()
        places = (torch.cumsum(seen, 1).type_as(seen) * seen).long()
        out: Tensor = self.head(functional.relu(self.block(self.words(tokens) + self.places(places))).mean(1))
        return out


def positions(signature: Signature) -> nn.Module:  # noqa: ARG001
    """Model factory: an embedding of tokens and one of their places."""
    return _Positions()


class _Upward(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(channels, 16, 4, 4)
        self.up = nn.ConvTranspose2d(16, 8, 4, 4, groups=2)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        large = functional.relu(self.up(functional.relu(self.down(x))))
        out: Tensor = self.head(large.mean((2, 3)))
        return out


def upward(signature: Signature) -> nn.Module:
    """Model factory: a convolution down, and a transposed one up again, in two groups."""
    return _Upward(signature.input_shape[0])


class _Residual(nn.Module):
    def __init__(self, channels: int, in_place: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.relu = nn.ReLU(inplace=in_place)
        self.head = nn.Linear(8, CLASSES)
        self.in_place = in_place

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.relu(self.norm(self.first(x)))
        x = self.second(shortcut)
        if self.in_place:
            x += shortcut
        else:
            x = x + shortcut
        out: Tensor = self.head(self.relu(x).mean((2, 3)))
        return out


def in_place(signature: Signature) -> nn.Module:
    """Model factory: a residual network that works in place, as torchvision's and timm's do."""
    return _Residual(signature.input_shape[0], in_place=True)


def out_of_place(signature: Signature) -> nn.Module:
    """Model factory: what `in_place` computes, with a new tensor for each result."""
    return _Residual(signature.input_shape[0], in_place=False)
