"""How much memory is free, and the share of it that is taken without asking."""

from __future__ import annotations

import os

import torch

SHARE = 0.25
"""Share of the free memory that defaults plan with at most."""


def free_bytes(device: torch.device) -> int:
    """Memory that is free on a device, or in the machine."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
