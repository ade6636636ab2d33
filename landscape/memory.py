"""How much memory is free, and the share of it that is taken without asking."""

from __future__ import annotations

import os
from pathlib import Path

import torch

_MEMINFO = Path("/proc/meminfo")

SHARE = 0.25
"""Share of the free memory that defaults plan with at most."""


def free_bytes(device: torch.device) -> int:
    """Memory that can be had on a device, or in the machine: caches of files count, where the system tells."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # torch's own, free again
        return int(torch.cuda.mem_get_info(device)[0]) + cached
    if _MEMINFO.is_file():
        lines = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")  # all there is: other systems do not tell
