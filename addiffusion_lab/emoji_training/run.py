"""Shared code of all stages: device, random streams, optimiser step, loading earlier stages, saving and logging."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from addiffusion_env.backbones.devices import resolve_device
from addiffusion_env.errors import NumericsError, ResumeError, WeightsError
from addiffusion_env.files import whole_file
from addiffusion_env.prompts import stable_hash
from addiffusion_lab.emoji_training.config import Tick, TrainConfig, TrainReport, budgeted_steps
from addiffusion_lab.emoji_training.renderer import Renderer


class Run:
    """One run of one stage.

    Args:
        stage: name of the stage, for random streams and messages.
        config: settings of the stage.

    Attributes:
        device: training device.
        generator: generator of batches, backgrounds and augmentation; on ``device``.
        renderer: draws scenes; on ``device``.
    """

    def __init__(self, stage: str, config: TrainConfig) -> None:
        self.stage, self.config = stage, config
        self.device = resolve_device(config.device)
        self.generator = torch.Generator(self.device).manual_seed(stable_hash("emoji train", stage, config.seed))
        self.renderer = Renderer(device=self.device)
        self.last_loss = float("nan")
        self.steps = 0
        self._start = time.monotonic()

    @contextmanager
    def initial_weights(self) -> Iterator[None]:
        """Context manager that seeds the initialisation of models and restores torch's global generator."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stable_hash("emoji weights", self.stage, self.config.seed))
            yield

    def autocast(self) -> AbstractContextManager[None]:
        """Autocast to bfloat16 on CUDA, no autocast elsewhere."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda")

    def clock(self, optimizer: torch.optim.Optimizer, warm: float = 0.02, tail: float = 0.5) -> Iterator[Tick]:
        """The steps of this run's budget."""
        config = self.config
        return budgeted_steps(optimizer, config.lr, config.seconds, config.steps, warm, tail if config.anneal else 0.0)

    def pick(self, count: int) -> torch.Tensor:
        """A batch of indices below ``count``, with replacement; (batch,) on the device."""
        return torch.randint(count, (self.config.batch,), device=self.device, generator=self.generator)

    def render(self, layouts: torch.Tensor) -> torch.Tensor:
        """Draws (B, 4, 5) layouts with new backgrounds: (B, 3, 64, 64) in [-1, 1]."""
        return self.renderer(layouts, self.generator)

    def update(
        self,
        optimizer: torch.optim.Optimizer,
        loss: torch.Tensor,
        parameters: Iterable[nn.Parameter],
        max_norm: float = 1.0,
        **logged: torch.Tensor,
    ) -> None:
        """One optimiser step with clipped gradients; every ``log_every`` steps prints ``logged``.

        Raises:
            NumericsError: at a logged step or the first one, when the loss is not finite.
        """
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, max_norm)
        optimizer.step()
        self.steps += 1
        self._loss = loss.detach()
        every = self.config.log_every
        if self.steps == 1 or (every and self.steps % every == 0):  # reading the loss synchronises the device
            self._read_loss()
            values = {"loss": self._loss, **logged}
            self.say(f"step {self.steps}", *(f"{name} {float(value.detach()):.4f}" for name, value in values.items()))

    def _read_loss(self) -> float:
        self.last_loss = float(self._loss)
        if self.last_loss != self.last_loss or abs(self.last_loss) == float("inf"):
            cause = f"stage {self.stage}: the loss is {self.last_loss} at step {self.steps}"
            raise NumericsError(cause, "lower --lr, or raise --batch")
        return self.last_loss

    def say(self, *words: object) -> None:
        """Prints a line of progress, unless ``log_every`` is 0."""
        if self.config.log_every:
            print(f"[{self.stage} {time.monotonic() - self._start:6.1f}s]", *words, flush=True)

    def report(self, folder: Path, **metrics: float) -> TrainReport:
        """Reports the result of the run."""
        loss = self._read_loss()
        self.say("wrote", folder, *(f"{name} {value:.4f}" for name, value in metrics.items()))
        return TrainReport(folder, self.steps, loss, metrics)


def earlier(config: TrainConfig, component: str, stage: str) -> Path:
    """The folder that an earlier stage wrote.

    Raises:
        WeightsError: when it does not exist.
    """
    folder = config.out / component
    if not folder.is_dir():
        command = f"python -m addiffusion_lab.emoji_training {stage} --out {config.out}"
        raise WeightsError(f"{folder} is missing: this stage reads what stage {stage} writes", f"run first: {command}")
    return folder


def write_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Writes a checkpoint atomically, so that an aborted run keeps the old one intact."""
    with whole_file(path) as file:
        torch.save(dict(state), file)


def restore_checkpoint(path: Path, device: torch.device, restore: Callable[[dict[str, Any]], None]) -> None:
    """Reads a checkpoint, without executing code from it, and hands it to ``restore``.

    Raises:
        ResumeError: when there is none, or one of a different model.
    """
    if not path.is_file():
        raise ResumeError(f"no checkpoint at {path}", "leave out --resume to start from the beginning")
    try:
        restore(torch.load(path, map_location=device, weights_only=True))
    except (RuntimeError, KeyError, ValueError) as error:
        summary = str(error).splitlines()[0]
        raise ResumeError(f"{path} is not a checkpoint of this model: {summary}", "leave out --resume") from error


def half_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state of a model in float16 on the CPU, contiguous, as in the shipped files."""
    return {
        name: (value.half() if value.is_floating_point() else value).cpu().contiguous()
        for name, value in model.state_dict().items()
    }


def save_transformer(model: nn.Module, folder: Path) -> None:
    """Saves a transformers model: float16 files under a float32 config, so that it loads in float32."""
    model.save_pretrained(folder, state_dict=half_state(model))  # type: ignore[operator]


def save_diffuser(model: nn.Module, folder: Path) -> None:
    """Saves a diffusers model in float16 (its config names no precision)."""
    half: Any = copy.deepcopy(model).cpu().half().to(memory_format=torch.contiguous_format)
    half.save_pretrained(folder)


def save_state(model: nn.Module, folder: Path) -> None:
    """Saves a plain module's float16 state as ``model.safetensors``."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file(half_state(model), folder / "model.safetensors", metadata={"format": "pt"})
