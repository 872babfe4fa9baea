"""Weights that the user already has: read without running code, and put into a model by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from orchestrator.errors import ModelError
from orchestrator.models.attention import separated
from orchestrator.models.served import Served
from orchestrator.store.artifacts import unpack_tensors

T = TypeVar("T")

BODY = "body."
"""What `Served` puts before its network's names."""

PREFIXES = ("", BODY, "module.", "module." + BODY)
"""What may stand before every name of a file: `module.` comes from torch's data parallel wrappers."""

NESTED = ("state_dict", "model_state_dict", "model")
"""Where training scripts keep the weights inside a checkpoint."""

SHOWN = 3
"""Names listed in an error before the rest is counted."""


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Tensors by name from a `.safetensors` file, or a `.pt`, `.pth` or `.bin` file of torch.

    A torch file is read with `weights_only=True`: one that holds anything but tensors and plain values
    is refused and none of its code runs. A checkpoint's weights are found under the keys in `NESTED`.

    Raises:
        ModelError: the file is missing, broken, of another kind, or not only weights.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError("there is no file of weights", path, "check the path")
    if path.suffix == ".safetensors":
        return _read(path, _safetensors_load, "the file is damaged or no safetensors file")
    if path.suffix in (".pt", ".pth", ".bin"):
        fix = "save only the weights: torch.save(model.state_dict(), path)"
        return _tensors(_read(path, _torch_load, fix), path)
    raise ModelError("weights must be a .safetensors, .pt, .pth or .bin file", path.name)


def _safetensors_load(path: Path) -> dict[str, Tensor]:
    return unpack_tensors(path.read_bytes())


def _torch_load(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _read(path: Path, load: Callable[[Path], T], fix: str) -> T:
    try:
        return load(path)
    except Exception as error:
        # Readers raise many types on broken and hostile files; the first line says what was wrong.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise ModelError(f"cannot read the weights ({reason.rstrip('.')})", path, fix) from error


def _tensors(value: Any, path: Path) -> dict[str, Tensor]:
    for key in NESTED:
        if isinstance(value, Mapping) and isinstance(value.get(key), Mapping):
            value = value[key]
    if not isinstance(value, Mapping) or not value:
        raise ModelError(
            f"the file holds a {type(value).__name__}, not tensors by name", path, "save model.state_dict()"
        )
    for name, item in value.items():
        if not isinstance(name, str) or not isinstance(item, Tensor):
            raise ModelError(
                f"the file holds more than tensors: {name} is a {type(item).__name__}",
                path,
                "save model.state_dict() alone",
            )
    return {name: item.detach() for name, item in value.items()}


def load_into(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy `tensors` into the module's parameters and buffers of the same name, or raise and copy nothing.

    All names may carry one of `PREFIXES`. Values are cast to the module's types.

    Raises:
        ModelError: names are missing or unknown (the nearest is told), or a shape differs.
    """
    own = module.state_dict()
    strip = BODY if isinstance(module, Served) else ""
    places = {name.removeprefix(strip): name for name in own}
    given = separated(_without_prefix(tensors, places), places)
    missing = [name for name in places if name not in given]
    unknown = [name for name in given if name not in places]
    if missing or unknown:
        raise ModelError(
            "the weights do not fit the model",
            "; ".join([*_some("missing", missing, unknown), *_some("unknown", unknown, places)]),
            "use the factory and kwargs they came from",
        )
    wrong = [
        f"{name} is {list(tensor.shape)}, the model has {list(own[places[name]].shape)}"
        for name, tensor in given.items()
        if tensor.shape != own[places[name]].shape
    ]
    if wrong:
        raise ModelError(
            "the weights have other shapes than the model",
            "; ".join(wrong[:SHOWN]),
            "check kwargs and the number of outputs",
        )
    module.load_state_dict({places[name]: tensor for name, tensor in given.items()})


def _without_prefix(tensors: Mapping[str, Tensor], places: Collection[str]) -> dict[str, Tensor]:
    """The tensors under the names that agree best with `places`, with one prefix taken from all of them."""
    readings = [
        {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
        for prefix in PREFIXES
        if all(name.startswith(prefix) for name in tensors)
    ]
    return max(readings, key=lambda reading: sum(name in places for name in reading))


def _some(what: str, names: Sequence[str], candidates: Collection[str] = ()) -> list[str]:
    """The first few names as one phrase, none for no names; the first with the candidate nearest to it."""
    if not names:
        return []
    near = difflib.get_close_matches(names[0], candidates, n=1)
    first = f"{names[0]} (nearest: {near[0]})" if near else names[0]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return [f"{what} {', '.join([first, *names[1:SHOWN]])}{more}"]
