"""torch's attention with its projections as layers answers as torch's own."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from orchestrator.models.attention import SplitAttention, split_attention
from orchestrator.models.weights import load_into

DIM, HEADS = 12, 3


def attention(**options: Any) -> nn.MultiheadAttention:
    torch.manual_seed(0)
    made = nn.MultiheadAttention(DIM, HEADS, batch_first=True, **options).eval()
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3)
    return made


def tokens(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def same(found: Any, wanted: Any) -> None:
    torch.testing.assert_close(found[0], wanted[0])
    assert (found[1] is None) == (wanted[1] is None)
    if found[1] is not None:
        torch.testing.assert_close(found[1], wanted[1])


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"kdim": 5, "vdim": 7}])
@pytest.mark.parametrize("weights", [{"need_weights": False}, {}, {"average_attn_weights": False}])
def test_it_answers_as_torch_does(options: dict[str, Any], weights: dict[str, Any]) -> None:
    source = attention(**options)
    query = tokens(2, 4, DIM)
    key = tokens(2, 6, options.get("kdim", DIM), seed=2)
    value = tokens(2, 6, options.get("vdim", DIM), seed=3)
    same(SplitAttention(source)(query, key, value, **weights), source(query, key, value, **weights))


@pytest.mark.parametrize("need_weights", [True, False])
def test_masks_hide_what_they_hide_in_torch(need_weights: bool) -> None:
    source = attention()
    split, x = SplitAttention(source), tokens(2, 5, DIM)
    padding = torch.tensor([[False, False, False, True, True], [False] * 5])
    causal = nn.Transformer.generate_square_subsequent_mask(5)
    by_head = tokens(2 * HEADS, 5, 5, seed=4)
    for masks in (
        {"key_padding_mask": padding},
        {"attn_mask": causal},
        {"attn_mask": causal, "is_causal": True},
        {"attn_mask": causal == -torch.inf, "key_padding_mask": padding},
        {"attn_mask": by_head},
    ):
        given: dict[str, Any] = {"need_weights": need_weights, **masks}
        same(split(x, x, x, **given), source(x, x, x, **given))
    with pytest.raises(RuntimeError, match="is_causal needs attn_mask"):
        split(x, x, x, is_causal=True)


def test_tokens_first_and_single_rows_work_too() -> None:
    source = attention()
    source.batch_first = False
    split = SplitAttention(source)
    for x in (tokens(4, 2, DIM), tokens(4, DIM)):
        same(split(x, x, x), source(x, x, x))


def test_dropout_is_torchs_in_training_alone() -> None:
    source = attention(dropout=0.5)
    split, x = SplitAttention(source), tokens(1, 8, DIM)
    assert torch.equal(split(x, x, x)[0], split(x, x, x)[0])
    torch.manual_seed(5)
    found = split.train()(x, x, x)
    torch.manual_seed(5)
    same(found, source.train()(x, x, x))


@pytest.mark.parametrize("norm_first", [True, False])
def test_a_transformer_encoder_answers_and_learns_alike(norm_first: bool) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(DIM, HEADS, 16, dropout=0.0, batch_first=True, norm_first=norm_first)
    source: Any = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    split: Any = split_attention(copy.deepcopy(source))
    assert sum(isinstance(part, SplitAttention) for part in split.modules()) == 2
    x = tokens(2, 5, DIM)
    torch.testing.assert_close(split(x), source(x))
    for model in (split, source):
        model.train()(x).square().mean().backward()
    first, other = (next(iter(model.layers)).self_attn for model in (split, source))
    fused = torch.cat([getattr(first, name).weight.grad for name in ("query", "key", "value")])
    torch.testing.assert_close(fused, other.in_proj_weight.grad)


def test_padded_rows_of_an_encoder_are_answered_alike() -> None:
    torch.manual_seed(0)
    source = nn.TransformerEncoder(nn.TransformerEncoderLayer(DIM, 2, 16, batch_first=True), 2).eval()
    split = split_attention(copy.deepcopy(source))
    x, padding = tokens(2, 5, DIM), torch.tensor([[False] * 5, [False, False, False, True, True]])
    for mode in (torch.no_grad(), torch.enable_grad()):
        with mode:
            found, wanted = split(x, src_key_padding_mask=padding), source(x, src_key_padding_mask=padding)
        # What torch gives for padding depends on the way it took.
        torch.testing.assert_close(found[~padding], wanted[~padding])


def test_frozen_parts_and_types_are_kept() -> None:
    source = attention().double()
    source.in_proj_weight.requires_grad_(False)
    split = SplitAttention(source)
    frozen = {name for name, parameter in split.named_parameters() if not parameter.requires_grad}
    assert frozen == {"query.weight", "key.weight", "value.weight"}
    x = tokens(1, 3, DIM).double()
    same(split(x, x, x), source(x, x, x))


def test_torchs_weights_are_read_under_their_names() -> None:
    source, target = nn.Sequential(attention()), split_attention(nn.Sequential(attention()))
    for parameter in source.parameters():
        nn.init.normal_(parameter)
    target.load_state_dict(source.state_dict())
    again = split_attention(nn.Sequential(attention()))
    load_into(again, source.state_dict())
    x = tokens(1, 3, DIM)
    for module in (target, again):
        same(module[0](x, x, x), source[0](x, x, x))  # type: ignore[index]
    copied = split_attention(nn.Sequential(attention()))
    copied.load_state_dict(target.state_dict())
    assert set(copied.state_dict()) == {f"0.{name}" for name in SplitAttention(attention()).state_dict()}


def test_one_that_two_layers_share_stays_one_and_extra_keys_stay_torchs() -> None:
    shared = attention()
    module = split_attention(nn.ModuleList([shared, shared, attention(add_bias_kv=True)]))
    assert module[0] is module[1]  # type: ignore[index]
    assert type(module[2]) is nn.MultiheadAttention  # type: ignore[index]
