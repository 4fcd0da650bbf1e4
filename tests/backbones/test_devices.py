"""Selection of device and precision, and refused values."""

from __future__ import annotations

import pytest
import torch

from addiffusion_env.backbones import BACKBONES
from addiffusion_env.backbones.devices import resolve_device, resolve_dtype
from addiffusion_env.errors import ConfigError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_devices_by_name():
    assert resolve_device("cpu") == CPU
    with pytest.raises(ConfigError, match="unknown device 'gpu'"):
        resolve_device("gpu")


def test_auto_takes_what_is_there(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == CPU
    with pytest.raises(ConfigError, match="torch sees no CUDA device"):
        resolve_device("cuda")
    with pytest.raises(ConfigError, match="torch has no MPS device here"):
        resolve_device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert resolve_device("auto") == resolve_device("mps") == torch.device("mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto") == CUDA
    assert resolve_device("cuda:1") == torch.device("cuda:1")


def test_precisions():
    assert resolve_dtype("auto", CPU) == torch.float32
    assert resolve_dtype("auto", CUDA) == torch.float16
    assert resolve_dtype("auto", CPU, "bfloat16") == torch.float32
    assert resolve_dtype("auto", CUDA, "bfloat16") == torch.bfloat16
    assert resolve_dtype("bfloat16", CPU) == torch.bfloat16
    with pytest.raises(ConfigError, match="float16 was requested on the CPU"):
        resolve_dtype("float16", CPU)
    with pytest.raises(ConfigError, match="did you mean 'bfloat16'"):
        resolve_dtype("bflot16", CPU)


@pytest.mark.parametrize(
    ("name", "expected"), [("sd15", "float16"), ("sd21", "float16"), ("sdxl", "float16"), ("flux", "bfloat16")]
)
def test_each_checkpoint_has_its_own_half_precision(name, expected):
    assert BACKBONES.load(name).spec.auto_dtype == expected
