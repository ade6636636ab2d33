"""Measuring switches TF32 off and puts back what the user had, by whichever of torch's names it was set."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

# In a process of its own: torch remembers by which names the precision was set.
PROGRAM = """
import torch
from landscape.evaluation import exact_products
matmul, conv = torch.backends.cuda.matmul, torch.backends.cudnn.conv
{setting}
before = matmul.fp32_precision, conv.fp32_precision
with exact_products():
    assert (matmul.fp32_precision, conv.fp32_precision) == ("ieee", "ieee")
assert (matmul.fp32_precision, conv.fp32_precision) == before
{reading}
"""


@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="names of torch 2.9")
@pytest.mark.parametrize(
    ("setting", "reading"),
    [
        ("pass", "assert not matmul.allow_tf32 and torch.backends.cudnn.allow_tf32"),
        ("matmul.allow_tf32 = True", "assert matmul.allow_tf32"),
        ("torch.set_float32_matmul_precision('high')", "assert torch.get_float32_matmul_precision() == 'high'"),
        ("matmul.fp32_precision = 'tf32'", "assert matmul.fp32_precision == 'tf32'"),
        ("torch.backends.fp32_precision = 'tf32'", "pass"),
    ],
)
def test_tf32_is_off_inside_and_as_before_after(setting: str, reading: str) -> None:
    program = PROGRAM.format(setting=setting, reading=reading)
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


OLDER = """
import torch
newer = torch.backends.cudnn

class Older:
    def __getattr__(self, name):
        if name in ("conv", "rnn"):
            raise AttributeError(name)
        return getattr(newer, name)

    def __setattr__(self, name, value):
        setattr(newer, name, value)

torch.backends.cudnn = Older()
from landscape.evaluation import exact_products
matmul = torch.backends.cuda.matmul
matmul.allow_tf32 = True
with exact_products():
    assert not matmul.allow_tf32 and not newer.allow_tf32
assert matmul.allow_tf32 and newer.allow_tf32
"""


def test_tf32_is_off_by_the_names_of_torch_before_2_9_too() -> None:
    done = subprocess.run([sys.executable, "-c", OLDER], check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
