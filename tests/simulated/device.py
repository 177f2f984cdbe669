"""The plugin of pytest that builds the device and tells torch about it."""

import contextlib
import types
from pathlib import Path

import torch
from torch.utils import cpp_extension

NAME = "simulated"


def pytest_addoption(parser):
    """Add what the device can be asked for."""
    parser.addoption("--without-float64", action="store_true", help="refuse float64")


def pytest_configure(config):
    """Make the device before a test is imported."""
    extension = cpp_extension.load(
        "imbmargin_simulated_device",
        [str(Path(__file__).with_name("device.cpp"))],
        extra_cflags=["-O1", "-w"],
    )
    extension.register_hooks()
    if config.getoption("--without-float64"):
        extension.refuse_float64()
    torch.utils.rename_privateuse1_backend(NAME)
    torch._register_device_module(NAME, _device_module())
    torch.utils.generate_methods_for_privateuse1_backend()


def _device_module():
    """Return what torch and this package ask of torch.cuda; random numbers are the CPU's."""
    module = types.ModuleType(f"torch.{NAME}")
    module.is_available = module.is_initialized = module.is_bf16_supported = lambda: True
    module._is_in_bad_fork = lambda: False
    module.device_count = lambda: 1
    module.current_device = lambda: 0
    module.device = lambda device: contextlib.nullcontext()
    module.get_device_name = lambda: NAME
    module.get_amp_supported_dtype = lambda: [torch.bfloat16, torch.float16]
    module.mem_get_info = lambda device: (2**36, 2**36)
    module.get_rng_state = lambda device: torch.zeros(1, dtype=torch.uint8)
    module.set_rng_state = lambda state, device: None
    module.synchronize = lambda device=None: None
    module.manual_seed = module.manual_seed_all = lambda seed: None
    return module
