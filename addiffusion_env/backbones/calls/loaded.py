"""Reads and checks the components of a loaded pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch._dynamo.eval_frame import OptimizedModule

from addiffusion_env.backbones.calls.arguments import PipelineArguments
from addiffusion_env.backbones.calls.open_call import NOT_DENOISERS
from addiffusion_env.backbones.memory import moved_by_hook
from addiffusion_env.backbones.schedules import AYS_SD15, AYS_SDXL
from addiffusion_env.backbones.text import check_lengths, expanded
from addiffusion_env.errors import CapabilityError, ConfigError

NO_LIMIT = 100_000
"""Length of a text window that no tokenizer limits, in tokens."""


def parts_of(pipe: Any) -> tuple[Any, ...]:
    """A pipeline's components, device, precision and scheduler; the value changes when any of them is replaced."""
    found: list[Any] = []
    for name, part in vars(pipe).items():
        if isinstance(part, nn.Module):
            first = next(part.parameters(), None)
            # An offloaded component changes its device with every call.
            place = None if first is None or moved_by_hook(part) else first.device
            found.append((name, id(part), None if first is None else first.dtype, place))
        elif name == "scheduler":
            found.append((name, type(part), repr(sorted(part.config.items(), key=str)), getattr(part, "shift", None)))
    return tuple(found)


def ays_timesteps(pipe: Any) -> tuple[int, ...]:
    """Align Your Steps timesteps of the model family: SDXL's UNets take the image size as an input, SD's do not."""
    config = getattr(getattr(pipe, "unet", None), "config", {})
    return AYS_SDXL if config.get("addition_embed_type") == "text_time" else AYS_SD15


def check_pipeline(pipe: Any) -> None:
    """Refuses pipelines whose denoisers keep state between calls.

    Raises:
        CapabilityError: with the component's name.
    """
    held = getattr(pipe, "__dict__", {})
    if held.get("scheduler", pipe) is None:
        raise CapabilityError(f"pipe.scheduler of the {type(pipe).__name__} is None", "set it to one of diffusers")
    parts = {name: part for name, part in held.items() if isinstance(part, nn.Module)}
    for name, part in parts.items():
        if name.startswith(NOT_DENOISERS):
            continue
        for inside, module in part.named_modules():
            registry = getattr(module, "_diffusers_hook", None)
            hooks = getattr(registry, "hooks", {})
            if any(hook._is_stateful for hook in hooks.values()) or getattr(module, "is_cache_enabled", False):
                raise CapabilityError(
                    f"{name} has a cache of its activations switched on, which mixes the images of a batch",
                    f"call pipe.{name}.disable_cache() first",
                )
            if replaced(module) and registry is None and not moved_by_hook(module):
                where = f"{name}.{inside}" if inside else name
                raise CapabilityError(
                    f"the forward method of {where} has been replaced (by DeepCache or the like), which may keep state "
                    "from one image to the next",
                    "disable that helper before the pipeline is wrapped",
                )
    if getattr(pipe, "scheduler", None) is not None and not parts:
        raise CapabilityError(f"a {type(pipe).__name__} has no network", "pass a text-to-image pipeline")


def replaced(module: nn.Module) -> bool:
    """Whether a module's forward method is another than its class's, compiled or not.

    accelerate puts the class's own back after offloading, as an attribute of the module.
    """
    forward = module.__dict__.get("forward")
    if forward is None or isinstance(module, OptimizedModule):
        return False
    forward = getattr(forward, "_torchdynamo_orig_callable", forward)  # torch.compile(module.forward)
    return getattr(forward, "__func__", None) is not type(module).forward or forward.__self__ is not module


def check_size(pipe: Any, arguments: PipelineArguments, drawn: tuple[int, int]) -> None:
    """Refuses an image size that the pipeline would round.

    Args:
        pipe: the pipeline.
        arguments: arguments of its call.
        drawn: (height, width) of the image that it draws with them.

    Raises:
        ConfigError: with the requested and the actual size.
    """
    for name, side in zip(("height", "width"), drawn, strict=True):
        asked = arguments.given.get(name)
        if asked is not None and asked != side:
            raise ConfigError(
                f"{name}={asked} was given, and a {type(pipe).__name__} draws {side}",
                "give a multiple of 16, or of 32 where that is refused",
            )


def tokenizers(pipe: Any) -> list[Any]:
    """The tokenizers that must not truncate a prompt: T5's if there is one (CLIP's may then truncate it), else all.

    A language model's tokenizer counts only if there are no others; its template adds to the length.
    """
    from transformers import PreTrainedTokenizerBase

    found = [part for part in vars(pipe).values() if isinstance(part, PreTrainedTokenizerBase)]
    for kind in ("T5", "CLIP"):
        if chosen := [part for part in found if type(part).__name__.startswith(kind)]:
            return chosen
    return found


def token_limit(pipe: Any, arguments: PipelineArguments) -> int:
    """Maximum prompt length of the pipeline's tokenizers, in tokens; a large number if none has a limit."""
    limits = []
    for tokenizer in tokenizers(pipe):
        limit = int(min(getattr(tokenizer, "model_max_length", NO_LIMIT) or NO_LIMIT, NO_LIMIT))
        length = arguments.value("max_sequence_length")
        if "CLIP" not in type(tokenizer).__name__ and isinstance(length, int):
            limit = length
        limits.append(limit)
    return max(limits, default=NO_LIMIT)


def check_windows(pipe: Any, texts: Sequence[str], limit: int) -> None:
    """Refuses prompts that every tokenizer of the pipeline would truncate; all are tokenised in one call of each.

    Raises:
        PromptError: with the prompt's length and the limit.
    """
    plain = [text for text in texts if isinstance(text, str)]
    if limit >= NO_LIMIT or not plain:
        return
    lengths = []
    for tokenizer in tokenizers(pipe):
        special = tokenizer.num_special_tokens_to_add()
        whole = expanded(pipe, tokenizer, plain)
        rows = tokenizer(whole, add_special_tokens=False, truncation=False, verbose=False).input_ids
        lengths.append([len(row) + special for row in rows])
    check_lengths(plain, map(min, zip(*lengths, strict=True)), limit)
