"""Where prompts come from: a grammar with exact requirements, files, and public benchmarks."""

from __future__ import annotations

from addiffusion_env.registry import Registry

BENCHMARKS = Registry(
    "benchmark",
    {
        "coco": "addiffusion_lab.benchmarks.coco:CocoPrompts",
        "drawbench": "addiffusion_lab.benchmarks.drawbench:DrawBenchPrompts",
        "geneval": "addiffusion_lab.benchmarks.geneval:GenEvalPrompts",
        "hpdv2": "addiffusion_lab.benchmarks.hpdv2:HPDv2Prompts",
        "imagereward": "addiffusion_lab.benchmarks.imagereward:ImageRewardPrompts",
        "parti": "addiffusion_lab.benchmarks.parti:PartiPrompts",
        "t2i_compbench": "addiffusion_lab.benchmarks.t2i_compbench:T2ICompBenchPrompts",
    },
)

PROMPT_SOURCES = Registry(
    "prompt source",
    {
        "emoji": "addiffusion_env.prompts.emoji_grammar:EmojiPrompts",
        "text_file": "addiffusion_env.prompts.text_file:TextFilePrompts",
        **BENCHMARKS,
    },
)
