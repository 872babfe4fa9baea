"""Equal networks as one wide network give what each of them gives."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from orchestrator.runtime.wide import widened

Body = Callable[[], nn.Module]


def cnn(*channels: int, batch_norm: bool = True) -> Body:
    def make() -> nn.Module:
        layers: list[nn.Module] = []
        before = 3
        for wide in channels:
            layers.append(nn.Conv2d(before, wide, 3, padding=1, bias=not batch_norm))
            layers += [nn.BatchNorm2d(wide)] * batch_norm + [nn.ReLU(), nn.MaxPool2d(2)]
            before = wide
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(before * 4, 12), nn.ReLU(), nn.Linear(12, 5))

    return make


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(192, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 5, bias=False)
    )


def flat_again() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5))


def pooled(*, count_include_pad: bool) -> nn.Module:
    pool = nn.AvgPool2d(3, 1, 1, count_include_pad=count_include_pad)
    return nn.Sequential(nn.Conv2d(3, 4, 3), pool, nn.Flatten(), nn.Linear(144, 5))


def several(make: Body, count: int = 3) -> list[nn.Module]:
    found = []
    for seed in range(count):
        torch.manual_seed(seed)
        body = make()
        for layer in body.modules():
            if isinstance(layer, nn.BatchNorm2d):
                nn.init.normal_(layer.weight, 1.0, 0.3)
                nn.init.normal_(layer.bias)
                layer.running_mean = torch.randn(layer.num_features)
                layer.running_var = torch.rand(layer.num_features) + 0.5
        found.append(body.eval())
    return found


@pytest.mark.parametrize(
    "make",
    [cnn(16, 32), cnn(4, 6), cnn(32, 16, batch_norm=False), mlp, flat_again],
    ids=["channels", "few channels", "bias", "mlp", "flat again"],
)
def test_it_gives_what_each_gives_for_any_number_of_rows(make: Body) -> None:
    """Also exported: a number of rows that is written into the graph would leave the members uncompiled."""
    bodies = several(make)
    wide = widened(bodies)
    assert wide is not None
    rows = {0: torch.export.Dim("rows", min=1)}
    exported = torch.export.export(wide.eval(), (torch.randn(4, 3, 8, 8),), dynamic_shapes=(rows,)).module()
    for count in (1, 7):
        x = torch.randn(count, 3, 8, 8)
        with torch.no_grad():
            expected = torch.stack([body(x) for body in bodies], dim=1)
            for form in (wide, exported):
                torch.testing.assert_close(form(x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "bodies",
    [
        [cnn(16, 32)(), cnn(16, 16)()],
        [cnn(64, 64)(), cnn(64, 64)()],
        [mlp(), cnn(16, 32)()],
        [mlp()],
        [nn.Linear(4, 2), nn.Linear(4, 2)],
        [nn.Sequential(nn.Linear(4, 2), nn.Softmax(1)), nn.Sequential(nn.Linear(4, 2), nn.Softmax(1))],
        [nn.Sequential(nn.Conv2d(3, 4, 3)), nn.Sequential(nn.Conv2d(3, 4, 3))],
        [nn.Sequential(nn.Linear(8, 4), nn.Flatten(), nn.Linear(24, 5)) for _ in range(2)],
        [pooled(count_include_pad=True), pooled(count_include_pad=False)],
    ],
    ids=[
        "sizes",
        "large",
        "kinds",
        "one",
        "no list",
        "unknown layer",
        "no rows",
        "rows that may have more axes",
        "unlike pools",
    ],
)
def test_what_is_not_equal_or_not_known_stays_apart(bodies: list[nn.Module]) -> None:
    assert widened([body.eval() for body in bodies]) is None
