"""What all policies with a file have in common: their environment, their cost per NFE and their measured frontier."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import numpy as np
from huggingface_hub import HfApi

from addiffusion_env.agents.hub_policy import CARD_FILE, policy_card
from addiffusion_env.agents.policy_file import PolicyConfig
from addiffusion_env.backbones.base import Backbone
from addiffusion_env.backbones.fingerprint import digest_of
from addiffusion_env.backbones.identity import described, results_digest
from addiffusion_env.engine.lane import Decide
from addiffusion_env.envs.settings import EnvSettings
from addiffusion_env.errors import ConfigError, WeightsError
from addiffusion_env.files import reason_of, writing_to
from addiffusion_env.samplers.base import BaseSampler
from addiffusion_env.scorers.image_scores import ImageScorers
from addiffusion_env.scorers.utility import Utility, calibrator_of


@dataclass
class SavedPolicy(BaseSampler, ABC):
    """A sampler from a policy's folder: a trained network, or a calibrated rule.

    Attributes:
        policy: the network; of a calibrated rule the folder, which holds its calibrator.
        config: what its folder says.
        cost_per_nfe: cost of one NFE; selects the point on the frontier. The default one of ``config`` if not given.
        name: for records.
        fingerprint: hash of its files, so that a policy made again under the same name gets separate records.
    """

    policy: Any
    config: PolicyConfig
    cost_per_nfe: float = None  # type: ignore[assignment]
    name: str = ""
    fingerprint: str = ""

    usage: ClassVar[str] = "policy:FOLDER[@COST][,shuffled][,no_refine]"
    example: ClassVar[tuple[str, str]] = ("emoji", "policy:emoji")
    learned: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.cost_per_nfe is None:
            self.cost_per_nfe = self.config.default_cost_per_nfe
        self.name = self.name or f"policy@{self.cost_per_nfe:g}"
        self.config.check_cost_per_nfe(self.cost_per_nfe)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes the policy's files and its model card.

        Raises:
            ConfigError: for a network that cannot be described, which a model in memory may have.
            RunFolderError: when the folder cannot be written.
        """
        folder = Path(folder)
        self.write(folder)
        with writing_to(folder):
            policy_card(self.config).save(folder / CARD_FILE)

    @abstractmethod
    def write(self, folder: Path) -> None:
        """Writes the configuration and what decides to a policy's folder."""

    def push_to_hub(
        self, repo_id: str, *, private: bool | None = None, token: str | None = None, **options: Any
    ) -> str:
        """Uploads what :meth:`save_pretrained` writes in one commit; returns the commit's URL.

        Args:
            repo_id: ``"owner/name"``; created if missing.
            private: whether a new repository is private.
            token: of the hub.
            **options: of huggingface_hub's ``HfApi.upload_folder``: ``commit_message``, ``revision``, ``create_pr``.

        Raises:
            ConfigError: as :meth:`save_pretrained`.
            WeightsError: when the hub cannot be reached or refuses, with the reason.
        """
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            try:
                hub = HfApi(token=token)
                repo = hub.create_repo(repo_id, private=private, exist_ok=True).repo_id
                if revision := options.get("revision"):
                    hub.create_branch(repo, branch=revision, exist_ok=True)
                return hub.upload_folder(repo_id=repo, folder_path=folder, **options)
            except Exception as error:  # error types of the hub or of the HTTP library, by version
                raise WeightsError(
                    f"the policy cannot be pushed to {repo_id}: {reason_of(error)}",
                    "run `hf auth login` with a token that may write there, or save_pretrained(folder) and "
                    f"`hf upload {repo_id} folder` from a machine with network",
                ) from error

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
        parts = {"backbone": described(backbone), "scorers": described(scorers)}
        # Policies made before results_digest hold the hash of the whole identity.
        changed = [
            name
            for name, digest in self.config.identity.items()
            if digest not in (results_digest(parts[name]), digest_of(parts[name]))
        ]
        if changed:
            warnings.warn(
                f"the policy's frontier was measured with another {' and '.join(changed)} (weights, precision, "
                "noise schedule or kind of device): it may spend more or less than target_nfe "
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
