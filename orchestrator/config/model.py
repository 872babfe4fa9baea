"""Settings that build an `nn.Module`: a built-in architecture, or an allowed import path."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Discriminator, Field, PositiveInt, Tag, field_validator, model_validator

from orchestrator.config.base import Settings, absent
from orchestrator.config.imports import ImportPath


class MlpKwargs(Settings):
    widths: tuple[PositiveInt, ...] = (128, 64)
    """Hidden widths."""
    dropout: float = Field(0.0, ge=0, lt=1)
    features: float | None = Field(None, gt=0, lt=1, exclude_if=absent)
    """Share of the features that this network looks at, drawn by its seed; all when not given."""


class CnnKwargs(Settings):
    channels: tuple[PositiveInt, PositiveInt] = (32, 64)
    hidden: int = Field(128, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)


class ResNetKwargs(Settings):
    depth: int = Field(20, ge=8)
    """6n + 2, as in He et al. 2015 (https://arxiv.org/abs/1512.03385), section 4.2."""
    width: int = Field(16, ge=4)
    """Channels of the first stage; the next two have twice and four times as many."""
    stem_stride: Literal[1, 2] = 1
    """2 halves the resolution at once: four times fewer operations."""

    @model_validator(mode="after")
    def _depth(self) -> ResNetKwargs:
        if (self.depth - 2) % 6:
            raise ValueError(f"depth must be 6n + 2 (8, 14, 20, 26, 32, ...), got {self.depth}")
        return self


class ResNet9Kwargs(Settings):
    width: int = Field(64, ge=4)
    """Channels of the first convolution; the last has eight times as many."""
    stem_pool: bool = False
    """Pool after the first convolution already: four times fewer operations, to spend on width."""
    whiten: bool = False
    """The first convolution is fixed and whitens 2x2 patches: it is set from train rows, and training gets on
    faster."""
    mirror: bool = False
    """Answer with the mean over an image and its mirror image: twice the work, fewer errors."""


class AirbenchKwargs(Settings):
    widths: tuple[PositiveInt, ...] = Field((64, 256, 256), min_length=1)
    """Channels of each block; a block halves height and width."""


class VitKwargs(Settings):
    patch: int = Field(4, ge=1)
    dim: int = Field(64, ge=8)
    depth: int = Field(4, ge=1)
    heads: int = Field(4, ge=1)
    mlp_ratio: float = Field(2.0, gt=0)

    @model_validator(mode="after")
    def _heads(self) -> VitKwargs:
        if self.dim % self.heads:
            raise ValueError(f"dim ({self.dim}) must be a multiple of heads ({self.heads})")
        return self


class TextNgramsKwargs(Settings):
    view: str | None = None
    """Name of the text segment to read; the first one of hashed n-grams when not given."""
    dim: int | None = Field(None, ge=1)
    """Width of an n-gram's embedding, before a linear; each n-gram votes for the classes itself when not
    given."""
    hidden: int | None = Field(None, ge=1)
    """Width of a ReLU layer between embedding and head; needs `dim`."""
    weights: Literal["idf", "none"] = "idf"
    """idf: rare n-grams count more, as far as train rows have them."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Of the text's embedding."""
    word_dropout: float = Field(0.0, ge=0, lt=1)
    """Share of n-grams that a training step does not see."""

    @model_validator(mode="after")
    def _needs_dim(self) -> TextNgramsKwargs:
        if self.hidden is not None and self.dim is None:
            raise ValueError("'hidden' needs 'dim'")
        return self


class TextCnnKwargs(Settings):
    view: str | None = None
    """Name of the text segment to read; the first one of tokens when not given."""
    dim: int = Field(128, ge=1)
    """Width of a token's embedding."""
    widths: tuple[PositiveInt, ...] = Field((2, 3, 4), min_length=1)
    """Tokens that each group of convolutions sees."""
    channels: int = Field(128, ge=1)
    """Convolutions of each width."""
    dropout: float = Field(0.5, ge=0, lt=1)
    word_dropout: float = Field(0.1, ge=0, lt=1)
    """Share of tokens that a training step sees as unknown."""


class EncoderKwargs(Settings):
    """What all small transformers share."""

    dim: int = Field(64, ge=8)
    depth: int = Field(2, ge=1)
    heads: int = Field(4, ge=1)
    mlp_ratio: float = Field(2.0, gt=0)
    dropout: float = Field(0.1, ge=0, lt=1)

    @model_validator(mode="after")
    def _heads(self) -> Self:
        if self.dim % self.heads:
            raise ValueError(f"dim ({self.dim}) must be a multiple of heads ({self.heads})")
        return self


class TextTransformerKwargs(EncoderKwargs):
    view: str | None = None
    """Name of the text segment to read; the first one of tokens when not given."""
    dim: int = Field(128, ge=8)
    word_dropout: float = Field(0.1, ge=0, lt=1)
    """Share of tokens that a training step sees as unknown."""


class LogMelKwargs(Settings):
    """Spectrogram of a sound on the mel scale, a part of the network."""

    window_ms: float = Field(32.0, gt=0)
    hop_ms: float = Field(16.0, gt=0)
    mels: int = Field(40, ge=4)
    """Frequency bands."""
    mask_bands: int = Field(0, ge=0)
    """Most neighbouring bands that a training step does not see (Park et al. 2019, SpecAugment,
    https://arxiv.org/abs/1904.08779)."""
    mask_ms: float = Field(0.0, ge=0)
    """Longest stretch of time that a training step does not see."""
    shift_ms: float = Field(0.0, ge=0)
    """Most that a training step moves a sound, to and fro."""


class AudioCnnKwargs(LogMelKwargs):
    widths: tuple[PositiveInt, ...] = Field((24, 48, 96), min_length=1)
    """Channels of each block; a block halves bands and time."""
    dropout: float = Field(0.2, ge=0, lt=1)


class AudioTransformerKwargs(LogMelKwargs, EncoderKwargs):
    patch_ms: float = Field(64.0, gt=0)
    """Time that one token covers."""


class WaveCnnKwargs(Settings):
    widths: tuple[PositiveInt, ...] = Field((32, 32, 64, 96), min_length=1)
    """Channels of each convolution; the sound gets four times shorter after each."""
    window_ms: float = Field(10.0, gt=0)
    """What the first convolution sees."""
    dropout: float = Field(0.2, ge=0, lt=1)
    shift_ms: float = Field(0.0, ge=0)
    """Most that a training step moves a sound, to and fro."""


class FtTransformerKwargs(EncoderKwargs):
    pass


class Mlp(Settings):
    """Multi-layer perceptron; categories of a table are embedded first."""

    factory: Literal["mlp"] = "mlp"
    kwargs: MlpKwargs = MlpKwargs()


class Cnn(Settings):
    factory: Literal["cnn"] = "cnn"
    kwargs: CnnKwargs = CnnKwargs()


class ResNet(Settings):
    factory: Literal["resnet"] = "resnet"
    kwargs: ResNetKwargs = ResNetKwargs()


class ResNet9(Settings):
    """Page 2018, "How to train your ResNet": few, wide layers that matrix units like."""

    factory: Literal["resnet9"] = "resnet9"
    kwargs: ResNet9Kwargs = ResNet9Kwargs()


class Airbench(Settings):
    """Jordan 2024 (https://arxiv.org/abs/2404.00498): a plain chain that learns in few epochs."""

    factory: Literal["airbench"] = "airbench"
    kwargs: AirbenchKwargs = AirbenchKwargs()


class Vit(Settings):
    factory: Literal["vit"] = "vit"
    kwargs: VitKwargs = VitKwargs()


class TextNgrams(Settings):
    """Joulin et al. 2016 (https://arxiv.org/abs/1607.01759): a linear model of hashed n-grams."""

    factory: Literal["text_ngrams"] = "text_ngrams"
    kwargs: TextNgramsKwargs = TextNgramsKwargs()


class TextCnn(Settings):
    """Kim 2014 (https://arxiv.org/abs/1408.5882): convolutions over tokens, the largest answer of each."""

    factory: Literal["text_cnn"] = "text_cnn"
    kwargs: TextCnnKwargs = TextCnnKwargs()


class TextTransformer(Settings):
    """A small pre-norm encoder over tokens."""

    factory: Literal["text_transformer"] = "text_transformer"
    kwargs: TextTransformerKwargs = TextTransformerKwargs()


class AudioCnn(Settings):
    """Convolutions over a log-mel spectrogram."""

    factory: Literal["audio_cnn"] = "audio_cnn"
    kwargs: AudioCnnKwargs = AudioCnnKwargs()


class AudioTransformer(Settings):
    """A small encoder over stretches of a log-mel spectrogram."""

    factory: Literal["audio_transformer"] = "audio_transformer"
    kwargs: AudioTransformerKwargs = AudioTransformerKwargs()


class WaveCnn(Settings):
    """Dai et al. 2016 (https://arxiv.org/abs/1610.00087): convolutions over the waveform itself."""

    factory: Literal["wave_cnn"] = "wave_cnn"
    kwargs: WaveCnnKwargs = WaveCnnKwargs()


class FtTransformer(Settings):
    """Gorishniy et al. 2021 (https://arxiv.org/abs/2106.11959): each column is a token."""

    factory: Literal["ft_transformer"] = "ft_transformer"
    kwargs: FtTransformerKwargs = FtTransformerKwargs()


BuiltIn = Annotated[
    Mlp
    | Cnn
    | ResNet
    | ResNet9
    | Airbench
    | Vit
    | TextNgrams
    | TextCnn
    | TextTransformer
    | AudioCnn
    | AudioTransformer
    | WaveCnn
    | FtTransformer,
    Field(discriminator="factory"),
]


class SideBySideKwargs(Settings):
    members: tuple[BuiltIn, ...] = Field(min_length=2)


class SideBySide(Settings):
    """Finished networks in one graph with a trained head: made by the step `merge`."""

    factory: Literal["side_by_side"] = "side_by_side"
    kwargs: SideBySideKwargs


class ImportedModel(Settings):
    """A module from the user's own code: `fn(signature, **kwargs) -> nn.Module`.

    `signature` is an `orchestrator.config.signature.Signature`. Scaling is added around the module, as for
    built-ins: it takes scaled float rows and gives logits, or scaled targets.
    """

    factory: ImportPath
    kwargs: dict[str, Any] = Field(default_factory=dict)

    @field_validator("factory", mode="before")
    @classmethod
    def _no_built_in(cls, value: Any) -> Any:
        if isinstance(value, str) and ":" not in value:
            known = ", ".join(BUILT_IN)
            raise ValueError(f"no built-in has this name ({known}), and package.module:callable has a colon")
        return value


def _tag(value: Any) -> str:
    factory = value.get("factory") if isinstance(value, dict) else getattr(value, "factory", None)
    return factory if factory in BUILT_IN else "imported"


BUILT_IN: tuple[str, ...] = tuple(
    cls.model_fields["factory"].default for cls in (*get_args(get_args(BuiltIn)[0]), SideBySide)
)

ModelSettings = Annotated[
    Annotated[Mlp, Tag("mlp")]
    | Annotated[Cnn, Tag("cnn")]
    | Annotated[ResNet, Tag("resnet")]
    | Annotated[ResNet9, Tag("resnet9")]
    | Annotated[Airbench, Tag("airbench")]
    | Annotated[Vit, Tag("vit")]
    | Annotated[TextNgrams, Tag("text_ngrams")]
    | Annotated[TextCnn, Tag("text_cnn")]
    | Annotated[TextTransformer, Tag("text_transformer")]
    | Annotated[AudioCnn, Tag("audio_cnn")]
    | Annotated[AudioTransformer, Tag("audio_transformer")]
    | Annotated[WaveCnn, Tag("wave_cnn")]
    | Annotated[FtTransformer, Tag("ft_transformer")]
    | Annotated[SideBySide, Tag("side_by_side")]
    | Annotated[ImportedModel, Tag("imported")],
    Discriminator(_tag),
]
