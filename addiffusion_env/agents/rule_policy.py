"""A calibrated rule as a policy: checked attempts, with an early exit and a threshold for every cost per NFE.

It is saved in the folder of any policy: ``config.json`` with the rules, and in ``policy.safetensors`` the calibrator's
arrays in place of a network's weights (none for a rule that checks no image).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from addiffusion_env.agents.policy_file import CONFIG_FILE, WEIGHTS_FILE, PolicyConfig, config_text
from addiffusion_env.agents.saved_policy import SavedPolicy
from addiffusion_env.backbones.base import Backbone
from addiffusion_env.engine.lane import Decide
from addiffusion_env.engine.process import Action, ProcessConfig
from addiffusion_env.files import whole_file, write_text, writing_to
from addiffusion_env.samplers.checked_attempts import Rule
from addiffusion_env.samplers.traits import ScoresUsed, selected_by
from addiffusion_env.scorers.image_scores import ImageScorers
from addiffusion_env.scorers.utility import Calibrator, Utility
from addiffusion_env.tabular.rules import MeasuredRule, best_rule


@dataclass
class RulePolicy(SavedPolicy):
    """A calibrated rule from a policy's folder, at its default cost per NFE or another one.

    Its cost of one NFE is in calibrated probability of a correct image, and selects the rule.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self.rules = tuple(MeasuredRule.of(rule) for rule in self.config.rules)
        self.rule: Rule = best_rule(self.rules, self.cost_per_nfe)
        self._checked = isinstance(self.settings().refine, Mapping)
        self._utility = Utility(calibrator=str(self.policy / WEIGHTS_FILE)) if self._checked else Utility()
        self._process: ProcessConfig | None = None

    def write(self, folder: Path) -> None:
        """See :meth:`.SavedPolicy.write`."""
        calibrator = Calibrator.load(self.policy / WEIGHTS_FILE) if self._checked else None
        save_rules(folder, self.config, calibrator)

    @property
    def needs_preview(self) -> bool:  # type: ignore[override]
        """Whether the rule abandons attempts by their previews."""
        return self.rule.abandon > -np.inf

    @property
    def scores_used(self) -> ScoresUsed:
        """Those of the calibrator; none for a rule that checks no image."""
        return selected_by(self._utility.parts if self._checked else (), self.needs_preview)

    @property
    def learned(self) -> bool:  # type: ignore[override]
        """Whether it was fitted: not if it checks no image."""
        return self._checked

    @property
    def constant(self) -> bool:  # type: ignore[override]
        """A rule that checks no image spends the same on every prompt."""
        return not self._checked

    @property
    def attempt_counts(self) -> tuple[int, int]:  # type: ignore[override]
        """Least and most attempts of an image."""
        return 1, self.rule.attempts

    def check_fits(self, backbone: str, clip_dim: int, feature_dim: int | None = None) -> None:
        """See :meth:`.SavedPolicy.check_fits`."""
        remedy = "calibrate this pipeline: addiffusion_env.calibrate(pipe)"
        self._check_calibrator(self._utility, backbone, clip_dim, remedy)

    def bind(self, backbone: Backbone, scorers: ImageScorers) -> None:
        """Fills in the process's defaults from the backbone."""
        process = self.settings().process(backbone.capabilities, backbone.name)
        self._process = replace(process, refine=replace(process.refine, utility=self._utility))

    def process(self, base: ProcessConfig) -> ProcessConfig:
        """The decision process that the rule was chosen on, whatever ``base`` is."""
        return self._process or base

    def decide(self, requests: Sequence[Decide]) -> list[int]:
        """See :meth:`.Rule.decide`."""
        return self.rule.decide([request.lane for request in requests], self._utility)

    def probabilities(self, requests: Sequence[Decide]) -> np.ndarray:
        """(B, 3), 1 for the rule's action."""
        return np.eye(len(Action))[self.decide(requests)]


def save_rules(folder: Path, config: PolicyConfig, calibrator: Calibrator | None) -> None:
    """Writes a rule's folder, the configuration last: a folder without it holds no policy.

    Raises:
        RunFolderError: when it cannot be written.
    """
    from safetensors.numpy import save

    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if calibrator is None:
            with whole_file(folder / WEIGHTS_FILE) as file:
                file.write(save({"none": np.zeros(1, np.float32)}))
        else:
            calibrator.save(folder / WEIGHTS_FILE)
        write_text(folder / CONFIG_FILE, config_text(config))
