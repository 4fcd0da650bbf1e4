"""What all policies with a file have in common: their environment, their cost per NFE and their measured frontier."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from addiffusion_env.agents.policy_file import PolicyConfig, find_policy, folder_digest, load_config
from addiffusion_env.backbones.base import Backbone
from addiffusion_env.backbones.fingerprint import digest_of
from addiffusion_env.backbones.identity import described
from addiffusion_env.engine.lane import Decide
from addiffusion_env.envs.settings import EnvSettings
from addiffusion_env.errors import ConfigError
from addiffusion_env.samplers.base import BaseSampler
from addiffusion_env.scorers.image_scores import ImageScorers
from addiffusion_env.scorers.utility import Utility, calibrator_of

if TYPE_CHECKING:
    from typing_extensions import Self


class SavedPolicy(BaseSampler, ABC):
    """A sampler from a policy's folder: a trained network, or a calibrated rule.

    Attributes:
        config: what its folder says.
        cost_per_nfe: cost of one NFE; selects the point on the frontier.
        name: for records.
        fingerprint: hash of its files, so that a policy made again under the same name gets separate records.
    """

    config: PolicyConfig
    cost_per_nfe: float
    name: str
    fingerprint: str

    usage: ClassVar[str] = "policy:FOLDER[@COST][,shuffled][,no_refine]"
    example: ClassVar[tuple[str, str]] = ("emoji", "policy:emoji")
    learned: ClassVar[bool] = True

    @classmethod
    def from_run(cls, folder: Path | str, cost_per_nfe: float | None = None, name: str | None = None) -> Self:
        """Loads a policy from a shipped name, a policy's folder, or the folder of a run or a calibration.

        Raises:
            WeightsError: when there is none.
        """
        found = find_policy(folder) or Path(folder)
        return cls.of(cls.source(found), load_config(found), cost_per_nfe, name, folder_digest(found))

    @classmethod
    def of(
        cls,
        source: Any,
        config: PolicyConfig,
        cost_per_nfe: float | None = None,
        name: str | None = None,
        fingerprint: str = "",
    ) -> Self:
        """A policy at a cost per NFE, or at its default one."""
        chosen = config.default_cost_per_nfe if cost_per_nfe is None else float(cost_per_nfe)
        return cls(source, config, chosen, name or f"policy@{chosen:g}", fingerprint)  # type: ignore[call-arg]

    @staticmethod
    @abstractmethod
    def source(folder: Path) -> Any:
        """What decides, from a policy's folder: the first argument of the class."""

    @property
    def curve(self) -> str:  # type: ignore[override]
        """The same policy at other costs per NFE."""
        return self.name.rpartition("@")[0]

    @property
    def varies_cost(self) -> bool:
        """Whether it takes a cost per NFE."""
        return "cost_per_nfe" in self.config.observation

    @property
    def expected_nfe(self) -> float | None:
        """NFE that it was measured to spend per image at its cost per NFE; ``None`` without a measured frontier."""
        if not self.config.frontier:
            return None
        costs_per_nfe, nfe = zip(*sorted(self.config.frontier), strict=True)
        return float(np.interp(self.cost_per_nfe, costs_per_nfe, nfe))

    def cost_per_nfe_for(self, target_nfe: float, backbone: Backbone, scorers: ImageScorers) -> float:
        """See :meth:`PolicyConfig.cost_per_nfe_for`; warns when the frontier was measured on others than these."""
        parts = {"backbone": backbone, "scorers": scorers}
        measured = self.config.identity.items()
        changed = [name for name, digest in measured if digest != digest_of(described(parts[name]))]
        if changed:
            warnings.warn(
                f"the policy's frontier was measured with another {' and '.join(changed)} (weights, precision, "
                "settings or kind of device): it may spend more or less than target_nfe "
                "here\n  -> give cost_per_nfe= instead",
                stacklevel=4,
            )
        return self.config.cost_per_nfe_for(float(target_nfe))

    def settings(self) -> EnvSettings:
        """The environment that the policy was made on."""
        return EnvSettings.of(**self.config.environment)

    @abstractmethod
    def check_fits(self, backbone: str, clip_dim: int, feature_dim: int | None = None) -> None:
        """Refuses a model with embeddings or features of other widths than the policy reads.

        Args:
            backbone: the model's registry name.
            clip_dim: width of its CLIP embedding.
            feature_dim: width of its denoiser's features; ``None`` if not known yet.

        Raises:
            ConfigError: naming what the policy was made on.
            CapabilityError: when it reads the features of a denoiser that has none.
        """

    def _check_calibrator(self, utility: Utility, backbone: str, clip_dim: int, remedy: str) -> None:
        """The part of :meth:`check_fits` about the calibrator of a utility, if it has one."""
        if utility.calibrator is None:
            return
        width = len(calibrator_of(utility.calibrator).centre)
        if width != clip_dim:
            raise ConfigError(
                f"policy {self.name!r} does not fit the {backbone} backbone: its calibrator reads text embeddings of "
                f"{width} numbers; here they have {clip_dim}",
                remedy,
            )

    @abstractmethod
    def probabilities(self, requests: Sequence[Decide]) -> np.ndarray:
        """(B, 3) the policy's probability of each action, in [0, 1]; illegal ones are 0, the others sum to 1."""
