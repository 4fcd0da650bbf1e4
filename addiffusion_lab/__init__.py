"""Tools for studies of AdDiffusion, separate from the library.

The claims H1 to H4, image metrics, the VLM judge, public benchmarks, whole-pipeline baselines, tiny pipelines, the
training of the emoji world's networks, the browser demo and the speed benchmark. Nothing in
``addiffusion_env`` imports it. Importing it registers names; their modules are imported when used.
"""

from addiffusion_env.catalogue import LISTINGS
from addiffusion_env.checks import FINDERS, TINY
from addiffusion_env.evaluation.extras import EXTRAS
from addiffusion_env.prompts import BENCHMARKS, PROMPT_SOURCES
from addiffusion_env.samplers import SAMPLERS

_PROMPTS = {
    "coco": "addiffusion_lab.benchmarks.coco:CocoPrompts",
    "drawbench": "addiffusion_lab.benchmarks.lists:DrawBenchPrompts",
    "geneval": "addiffusion_lab.benchmarks.geneval:GenEvalPrompts",
    "hpdv2": "addiffusion_lab.benchmarks.lists:HPDv2Prompts",
    "imagereward": "addiffusion_lab.benchmarks.lists:ImageRewardPrompts",
    "parti": "addiffusion_lab.benchmarks.lists:PartiPrompts",
    "t2i_compbench": "addiffusion_lab.benchmarks.t2i_compbench:T2ICompBenchPrompts",
}

for _registry, _names in (
    (
        SAMPLERS,
        {
            "lcm": "addiffusion_lab.pipelines.distilled:LatentConsistency",
            "turbo": "addiffusion_lab.pipelines.distilled:SDXLTurbo",
            "sag": "addiffusion_lab.pipelines.self_attention:SelfAttentionGuidance",
            "attend_excite": "addiffusion_lab.pipelines.attend_excite:AttendAndExcite",
            "fbcache": "addiffusion_lab.pipelines.first_block_cache:FirstBlockCache",
        },
    ),
    (BENCHMARKS, _PROMPTS),
    (PROMPT_SOURCES, _PROMPTS),
    (
        EXTRAS,
        {
            "metrics": "addiffusion_lab.extras:Metrics",
            "vlm": "addiffusion_lab.extras:VlmJudge",
            "hypotheses": "addiffusion_lab.extras:Hypotheses",
            "page": "addiffusion_lab.extras:Page",
            "benchmark_export": "addiffusion_lab.extras:BenchmarkExport",
        },
    ),
    (
        LISTINGS,
        {
            "benchmarks": "addiffusion_lab.listings:benchmarks",
            "metrics": "addiffusion_lab.listings:metrics",
            "judges": "addiffusion_lab.listings:judges",
        },
    ),
    (FINDERS, {"metric": "addiffusion_lab.listings:find_metric"}),
    (TINY, {"tiny pipelines": "addiffusion_lab.tiny_pipelines.backbones:TINY"}),
):
    for _name, _target in _names.items():
        if _name not in _registry:  # a reload must not register twice
            _registry.add(_name, _target)
