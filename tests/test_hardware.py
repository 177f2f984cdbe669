import platform
from pathlib import Path

import pytest
import torch

from imbmargin import _hardware as hardware

AMX, AVX512 = "_is_amx_tile_supported", "_is_avx512_bf16_supported"


@pytest.fixture
def processor(monkeypatch):
    def pretend(vendor="", **instructions):
        for name in (AMX, AVX512):
            value = instructions.get(name, False)
            monkeypatch.setattr(torch.cpu, name, lambda value=value: value, raising=False)
        monkeypatch.setattr(hardware, "_cpuinfo", lambda field: vendor)
        hardware.has_fast_bfloat16.cache_clear()

    yield pretend
    hardware.has_fast_bfloat16.cache_clear()


@pytest.mark.parametrize(
    ("vendor", "instructions", "expected"),
    [
        ("GenuineIntel", (), False),
        ("GenuineIntel", (AVX512,), False),
        ("GenuineIntel", (AVX512, AMX), True),
        ("AuthenticAMD", (), False),
        ("AuthenticAMD", (AVX512,), True),
    ],
)
def test_bfloat16_is_fast_where_its_instructions_are(processor, vendor, instructions, expected):
    processor(vendor, **dict.fromkeys(instructions, True))
    assert hardware.has_fast_bfloat16() is expected


def test_vendor_where_there_is_no_cpuinfo(processor, monkeypatch):
    processor(**{AVX512: True})
    monkeypatch.setattr(platform, "processor", lambda: "AMD64 Family 25 Model 97, AuthenticAMD")
    assert hardware.has_fast_bfloat16()


def test_torch_without_the_questions(processor, monkeypatch):
    processor("AuthenticAMD")
    for name in (AMX, AVX512):
        monkeypatch.delattr(torch.cpu, name)
    assert hardware.has_fast_bfloat16() is False


def test_cpu_name(monkeypatch):
    text = "vendor_id\t: GenuineIntel\nmodel name\t: Some CPU: 2 GHz\nmodel name\t: Another\n"
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: text)
    assert hardware.cpu_name() == "Some CPU: 2 GHz"

    def missing(*_, **__):
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)
    assert hardware.cpu_name() == (platform.processor() or platform.machine())
