"""What the processor is, and whether it is faster in bfloat16."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

import torch

__all__ = ["cpu_name", "gpu_name", "has_fast_bfloat16"]


def cpu_name() -> str:
    """Return the name of the processor, as it is written beside results."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def gpu_name() -> str | None:
    """Return the name of the CUDA device in use, as it is written beside results, or None."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


@cache
def has_fast_bfloat16() -> bool:
    """Tell whether convolutions are faster in bfloat16 than in float32 on the processor.

    torch emulates bfloat16 where there are no instructions for it. Those of AVX-512 have the double
    pace of float32 on AMD's processors and only the pace of float32 on Intel's, where the
    conversions around them cost more than they bring: a step of ResNet-32 took 1.4 times as long.
    Intel's faster ones are those of AMX, which virtual machines often hide.
    """
    # torch has no public question for this in all of its versions that are supported.
    amx, avx512 = (
        getattr(torch.cpu, name, bool)()
        for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    )
    vendor = _cpuinfo("vendor_id") or platform.processor()
    return amx or (avx512 and "AuthenticAMD" in vendor)


def _cpuinfo(field: str) -> str:
    """Return a field of Linux's description of the first processor, elsewhere an empty string."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), "")
