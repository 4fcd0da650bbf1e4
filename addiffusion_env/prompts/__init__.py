"""Where prompts come from: a grammar with exact requirements, files, and public benchmarks."""

from __future__ import annotations

from addiffusion_env.registry import Registry

BENCHMARKS = Registry(
    "benchmark",
    {
        "coco": "addiffusion_env.prompts.benchmarks.coco:CocoPrompts",
        "drawbench": "addiffusion_env.prompts.benchmarks.drawbench:DrawBenchPrompts",
        "geneval": "addiffusion_env.prompts.benchmarks.geneval:GenEvalPrompts",
        "hpdv2": "addiffusion_env.prompts.benchmarks.hpdv2:HPDv2Prompts",
        "imagereward": "addiffusion_env.prompts.benchmarks.imagereward:ImageRewardPrompts",
        "parti": "addiffusion_env.prompts.benchmarks.parti:PartiPrompts",
        "t2i_compbench": "addiffusion_env.prompts.benchmarks.t2i_compbench:T2ICompBenchPrompts",
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
