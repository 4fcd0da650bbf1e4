"""Where prompts come from: a grammar with exact requirements, files, and public benchmarks."""

from __future__ import annotations

from addiffusion_env.registry import Registry

BENCHMARKS = Registry("benchmark", more="addiffusion_lab")
"""Public prompt lists, each also a prompt source; :mod:`addiffusion_lab` registers some."""

PROMPT_SOURCES = Registry(
    "prompt source",
    {
        "emoji": "addiffusion_env.prompts.emoji_grammar:EmojiPrompts",
        "text_file": "addiffusion_env.prompts.text_file:TextFilePrompts",
    },
    more="addiffusion_lab",
)
