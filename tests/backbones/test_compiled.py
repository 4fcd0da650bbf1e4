"""Compiled denoisers: one graph per bucket for varying numbers of lanes, and unchanged predictions."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

from addiffusion_env.backbones import compiled as compiled_module
from addiffusion_env.backbones.compiled import BUCKETS, compiled
from addiffusion_env.errors import ConfigError


def evaluate(backbone, lanes, capture=None):
    """One evaluation of ``lanes`` lanes, every second one without guidance."""
    capabilities = backbone.capabilities
    x = torch.randn(lanes, *capabilities.latent_shape, generator=torch.Generator().manual_seed(2))
    sigma = torch.full((lanes,), float(backbone.sigmas(4, capabilities.default_spacing)[1]), dtype=torch.float64)
    scale = torch.full((lanes,), capabilities.default_guidance, dtype=torch.float64)
    scale[1::2] = 1.0
    prompts = [f"a photo of {thing}" for thing in ("a dog", "a red cup", "a cat", "a sofa", "a cup")[:lanes]]
    return backbone.predict(x, sigma, backbone.encode(prompts), scale, capture)


@contextmanager
def sizes_of(backbone):
    """The batch sizes that the network is called with."""
    sizes = []

    def noted(module, args, kwargs):
        sizes.append(len(args[0] if args else kwargs["hidden_states"]))

    handle = backbone.denoiser.register_forward_pre_hook(noted, with_kwargs=True)
    yield sizes
    handle.remove()


@pytest.mark.parametrize("name", ["sd15", pytest.param("sdxl", marks=pytest.mark.slow), "flux"])
def test_filling_up_changes_no_prediction(tiny, name):
    plain, padded = tiny(name).wrap(), tiny(name).wrap(batch_buckets=[4, 16])
    sizes = []
    for lanes in (1, 3, 5):
        one = evaluate(plain, lanes)
        with sizes_of(padded) as called:
            other = evaluate(padded, lanes)
        sizes += called[-1:]  # the others open the pipeline's calls
        for field in ("x0", "features", "calls"):
            torch.testing.assert_close(getattr(other, field), getattr(one, field), rtol=1e-4, atol=1e-4)
    assert sizes == ([4, 4, 16] if name == "flux" else [4, 16, 16])  # rows: 1, 3, 5 without guidance; 2, 5, 8 with


def test_attention_maps_are_those_of_the_lanes(tiny):
    wanted = torch.tensor([False, True, True])
    one = evaluate(tiny("sd15").wrap(), 3, wanted).attention
    other = evaluate(tiny("sd15").wrap(batch_buckets=[16]), 3, wanted).attention
    torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_lanes_that_leave_are_no_reason_to_compile_again(tiny):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    plain, backbone = tiny("sd15").wrap(), tiny("sd15").wrap(batch_buckets=[4, 8])
    torch._dynamo.reset()
    form = torch.compile(backbone.denoiser, backend=backend, dynamic=False)
    backbone.evaluator.networks.compiled = {id(backbone.denoiser): form}
    made = []
    for lanes in (5, 4, 3, 5, 2, 1, 5):  # 8, 6, 5, 8, 3, 2, 8 rows
        torch.testing.assert_close(evaluate(backbone, lanes).x0, evaluate(plain, lanes).x0, rtol=1e-4, atol=1e-4)
        made.append(len(graphs))
    assert made[0] > 0
    assert made[3] == made[0]  # 8, 6 and 5 rows are one bucket
    assert made[6] == made[4] == 2 * made[0]  # 3 and 2 rows are the other


def test_compiling_comes_with_buckets(tiny):
    assert tuple(tiny("sd15").wrap(compile=True).options.buckets) == BUCKETS
    assert tuple(tiny("sd15").wrap(compile=True, batch_buckets=[6]).options.buckets) == (6,)
    assert tuple(tiny("sd15").wrap().options.buckets) == ()


@pytest.mark.parametrize("sizes", [[], [0, 2], [4, 2], [2, 2], [1.5], [True]])
def test_invalid_buckets(tiny, sizes):
    with pytest.raises(ConfigError, match=r"batch_buckets must be (increasing|a list of int)"):
        tiny("sd15").wrap(batch_buckets=sizes)


def test_without_a_compiler_the_network_runs_as_it_is(tiny, monkeypatch):
    monkeypatch.setattr(compiled_module.shutil, "which", lambda name: None)
    with pytest.warns(UserWarning, match="cpu has no C\\+\\+ compiler"):
        assert compiled(tiny("sd15").pipe.unet, True, torch.device("cpu")) is None
