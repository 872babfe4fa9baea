"""The few names used of torchao, imported without its noise and its side effect.

Its wheel tries CUDA libraries that a CPU build of torch cannot load and says so, and it logs a
deprecation that only its authors can mend. Its quantizer gives inductor a pass for the whole process; here
only the compilation of int8 graphs gets it.
"""

from __future__ import annotations

import logging
import os

import torch
from torch._inductor import config as _inductor

os.environ.setdefault("TORCHAO_FORCE_SKIP_LOADING_SO_FILES", "1")
_noisy = {name: logging.getLogger(name) for name in ("torchao", "torch.utils._pytree")}
_levels = {name: logger.level for name, logger in _noisy.items()}
for _logger in _noisy.values():
    _logger.setLevel(logging.ERROR)
_pass = _inductor.pre_grad_custom_pass

from torchao.quantization.pt2e.observer import (  # noqa: E402
    HistogramObserver,
    MinMaxObserver,
    PerChannelMinMaxObserver,
)
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e  # noqa: E402
from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (  # noqa: E402
    X86InductorQuantizer,
    get_default_x86_inductor_quantization_config,
    quant_lift_up,
)
from torchao.utils import should_reduce_range  # noqa: E402

# Known to torch once torchao is imported.
QUANTIZE = torch.ops.quantized_decomposed.quantize_per_tensor.default
DEQUANTIZE = torch.ops.quantized_decomposed.dequantize_per_tensor.default

_inductor.pre_grad_custom_pass = _pass
for _name, _level in _levels.items():
    _noisy[_name].setLevel(_level)

__all__ = [
    "DEQUANTIZE",
    "QUANTIZE",
    "HistogramObserver",
    "MinMaxObserver",
    "PerChannelMinMaxObserver",
    "X86InductorQuantizer",
    "convert_pt2e",
    "get_default_x86_inductor_quantization_config",
    "prepare_pt2e",
    "quant_lift_up",
    "should_reduce_range",
]
