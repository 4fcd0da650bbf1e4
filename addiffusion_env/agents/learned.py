"""A trained policy as a sampler, run like any baseline."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from addiffusion_env.agents.policy import Memory, action_probabilities, build_network
from addiffusion_env.agents.policy_file import find_policy, folder_digest, load_config, load_policy, save_policy
from addiffusion_env.agents.rule_policy import RulePolicy
from addiffusion_env.agents.saved_policy import SavedPolicy
from addiffusion_env.backbones.base import Backbone
from addiffusion_env.engine.coroutines import legal_actions
from addiffusion_env.engine.lane import Decide, Lane, Remembered
from addiffusion_env.engine.process import REFINE_PRESETS, ProcessConfig
from addiffusion_env.envs.settings import EnvSettings, refine_config
from addiffusion_env.envs.slot import Framer
from addiffusion_env.errors import ConfigError, unknown
from addiffusion_env.observations import FEATURES, needs_preview, parts_shown
from addiffusion_env.observations.features import Frame, Observer
from addiffusion_env.prompts import Prompt, stable_hash
from addiffusion_env.rewards import make_reward
from addiffusion_env.samplers.traits import PARTS, ScoresUsed, Traits
from addiffusion_env.scorers.image_scores import ImageScorers, ImageScores

CONTROLS = ("shuffled", "no_refine")
"""Controls of a policy: what they remove (the text embedding, or the action *refine*)."""


@dataclass
class PolicySampler(SavedPolicy):
    """A trained policy from a run's folder (or a shipped one), at its default cost per NFE or another one.

    Two controls remove one input or action and leave the rest unchanged. With ``shuffled``
    (``policy:runs/emoji@0.01,shuffled``) it observes the text embedding of another prompt of the evaluation's list,
    also in a calibrator that reads it; preference and CLIP score are still those of the correct prompt, so it can
    recognise a bad image. What it then spends does not depend on the prompt's text. With ``no_refine`` refine is
    masked, as if its episodes had no refinements left; since it was trained with them, it may lose more than a
    policy that was trained without.

    Attributes:
        shuffled: whether it observes the embeddings of other prompts; the fingerprint then covers these prompts too.
        no_refine: whether refine is masked.
        policy, config, cost_per_nfe, name, fingerprint: see :class:`.SavedPolicy`.
    """

    shuffled: bool = False
    no_refine: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._shown: dict[str, Prompt] = {}
        self._scorers: ImageScorers | None = None
        self._observer: Observer | None = None
        self._framer: Framer | None = None
        self._process: ProcessConfig | None = None

    @classmethod
    def parse(cls, text: str) -> SavedPolicy:  # type: ignore[override]
        """Loads the policy of a run's folder (a network or a calibrated rule), at a cost per NFE or its default one.

        ``5.6nfe`` as cost per NFE is the cost at which the policy's frontier on training prompts spends 5.6 NFE.

        It is named after the run's folder and its cost per NFE, and carries a ``fingerprint`` of the files, so that the
        records of a policy that was trained again under the same name are not taken for the new one's.

        Raises:
            WeightsError: when the folder holds no policy.
            ConfigError: when the cost per NFE is not a number of at least 0, or a control is given twice.
            UnknownNameError: for an unknown control.
        """
        text, controls = _controls(text)
        folder, at, cost_per_nfe = text.rpartition("@")
        if not at:
            folder, cost_per_nfe = text, ""
        sampler = load_sampler(folder, _cost_per_nfe(cost_per_nfe, folder))
        sampler.name = ",".join((f"policy:{run_name(folder)}@{sampler.cost_per_nfe:g}", *controls))
        if not isinstance(sampler, cls):
            if controls:
                raise ConfigError(
                    f"{folder} holds a calibrated rule, which has no controls", f"leave out {controls[0]}"
                )
            return sampler
        sampler.shuffled, sampler.no_refine = (control in controls for control in CONTROLS)
        return sampler

    @classmethod
    def traits_of(cls, name: str) -> Traits:
        """The traits that a policy's name implies when its files are unavailable: it may have used every scorer."""
        text, controls = _controls(name)
        used = tuple((part, "its policy file is not available") for part in PARTS)
        own = {"control_of": text, "controls": controls} if controls else {"curve": text.rpartition("@")[0]}
        return Traits(kind="policy", learned=True, needs_preview=True, scores_used=used, **own)

    @property
    def curve(self) -> str:  # type: ignore[override]
        """The same policy at other costs per NFE; none for controls."""
        return "" if self.controls else super().curve

    @property
    def controls(self) -> tuple[str, ...]:
        """The entries of :data:`CONTROLS` that are applied to it."""
        return tuple(control for control in CONTROLS if getattr(self, control))

    @property
    def control_of(self) -> str:
        """Name of the policy without controls at the same cost per NFE; empty for a policy without controls."""
        return self.name.removesuffix("," + ",".join(self.controls)) if self.controls else ""

    @property
    def scores_used(self) -> ScoresUsed:
        """The scorers that it was rewarded by, selects by or observes, from the environment that it was trained on."""
        return scores_used(self.settings())

    @property
    def needs_preview(self) -> bool:  # type: ignore[override]
        """Whether it needs previews: not when it reads the denoiser's features instead."""
        return needs_preview(list(self.config.observation))

    def write(self, folder: Path) -> None:
        """See :meth:`.SavedPolicy.write`."""
        again = build_network(self.config.network, self.config.net_arch, self.config.space())
        ours, theirs = ({key: value.shape for key, value in one.state_dict().items()} for one in (self.policy, again))
        if ours != theirs:
            raise ConfigError(
                f"a {type(self.policy).__name__} cannot be saved: its class or policy_kwargs have no written form",
                "define its classes at the top of modules and give numbers, texts and lists, or use the model's save()",
            )
        save_policy(folder, self.policy, self.config)

    @property
    def expected_nfe(self) -> float | None:
        """See :attr:`.SavedPolicy.expected_nfe`; ``None`` with a control, with which nothing was measured."""
        return None if self.no_refine else super().expected_nfe

    def process(self, base: ProcessConfig) -> ProcessConfig:
        """The decision process that the policy was trained on, whatever ``base`` is."""
        process = self._process or base
        return replace(process, refine=REFINE_PRESETS["off"]) if self.no_refine else process

    def check_fits(self, backbone: str, clip_dim: int, feature_dim: int | None = None) -> None:
        """See :meth:`.SavedPolicy.check_fits`."""
        trained = {key: width for key, (_, width) in self.config.observation.items()}
        if feature_dim is None:
            trained = {key: width for key, width in trained.items() if not FEATURES.load(key).needs_features}
        there = Observer(clip_dim, list(trained), feature_dim or 0).widths
        for key, width in trained.items():
            if width != there[key]:
                known = self.settings().backbone
                raise ConfigError(
                    f"policy {self.name!r} does not fit the {backbone} backbone: it was trained on {known}, where "
                    f"{key!r} holds {width} numbers; here it holds {there[key]}",
                    f"use it on {known}, or here a policy without training: policy='fixed:20'"
                    if known != backbone
                    else "pass scorers= with the CLIP that it was trained with",
                )
        settings = self.settings()
        remedy = f"use it on {settings.backbone}, or here a policy without training: policy='fixed:20'"
        self._check_calibrator(refine_config(settings.refine).utility, backbone, clip_dim, remedy)

    def bind(self, backbone: Backbone, scorers: ImageScorers) -> None:
        """Makes the policy ready to decide on a backbone's lanes."""
        settings = self.settings()
        self._process = settings.process(backbone.capabilities, backbone.name)
        # A policy that may not refine also sees its budget as the one that it was trained on.
        self._framer = Framer(backbone, self._process, scorers, self.config.highest_cost_per_nfe)
        width = backbone.capabilities.feature_dim or 0
        self._observer = Observer(scorers.clip_dim, list(self.config.observation), width)
        self._scorers = scorers

    def setup(self, prompts: Sequence[Prompt]) -> None:
        """Called with the evaluation's prompts; a shuffled policy permutes their embeddings.

        The permutation is a cycle through the prompts sorted by hash, so no prompt keeps its own embedding, and
        the assignment depends neither on the list's order nor on the other lanes.

        Raises:
            ConfigError: for fewer than two prompts.
        """
        if not self.shuffled:
            return
        if len(prompts) < 2:
            raise ConfigError(f"{self.name}: {len(prompts)} prompt cannot be shuffled", "evaluate at least two")
        circle = sorted(prompts, key=lambda prompt: stable_hash("shuffled", prompt.prompt_id))
        self._shown = {p.prompt_id: other for p, other in zip(circle, circle[1:] + circle[:1], strict=True)}
        dealt = stable_hash(*(prompt.prompt_id for prompt in circle))
        self.fingerprint = f"{self.fingerprint.partition('+')[0]}+shuffled {dealt:x}"

    def decide(self, requests: Sequence[Decide]) -> list[int]:
        """The most probable legal action of each lane, with the memory that its next decision is to carry."""
        probabilities, legal, memories = self._distribution(requests)
        actions = np.where(legal, probabilities, -1.0).argmax(1).tolist()
        return [
            action if memory is None else Remembered(action, memory)
            for action, memory in zip(actions, memories, strict=True)
        ]

    def probabilities(self, requests: Sequence[Decide]) -> np.ndarray:
        """(B, 3) the policy's probability of each action, in [0, 1]; illegal ones are 0, the others sum to 1."""
        probabilities, legal, _ = self._distribution(requests)
        allowed = np.where(legal, probabilities, 0.0)
        return allowed / allowed.sum(1, keepdims=True)

    def _frame(self, lanes: Sequence[Lane], before: Sequence[ImageScores | None]) -> Frame:
        """The policy's observation; if shuffled, with other prompts' text embeddings, which the utility reads too."""
        assert self._scorers is not None and self._framer is not None, "bind() first"
        costs_per_nfe = [self.cost_per_nfe] * len(lanes)
        if not self.shuffled:
            return self._framer.frame(lanes, before, costs_per_nfe)
        texts = self._scorers.clip.embed_texts([self._shown[lane.prompt.prompt_id] for lane in lanes]).numpy()
        shown = [_with_text(lane, text[None]) for lane, text in zip(lanes, texts, strict=True)]
        prior = self._framer.process.refine.utility.before(texts)
        return replace(self._framer.frame(shown, before, costs_per_nfe), clip_text=texts, prior=prior)

    def _distribution(self, requests: Sequence[Decide]) -> tuple[np.ndarray, np.ndarray, Sequence[Memory]]:
        """(B, 3) action probabilities of the network, (B, 3) bool which actions are legal, and memories afterwards."""
        assert self._observer is not None and self._process is not None, "bind() first"
        lanes = [request.lane for request in requests]
        observation = self._observer.observe(self._frame(lanes, [request.before for request in requests]))
        legal = legal_actions(lanes, self.process(self._process))
        before = [request.memory for request in requests]
        probabilities, memories = action_probabilities(self.policy, observation, legal, before)
        return probabilities, legal, memories


def load_sampler(folder: Path | str, cost_per_nfe: float | None = None) -> SavedPolicy:
    """Loads a trained network or a calibrated rule.

    Args:
        folder: a shipped policy's name, a policy's folder, or the folder of a run or a calibration.
        cost_per_nfe: of the policy; ``None`` for its default one.

    Raises:
        WeightsError: when there is none.
    """
    found = find_policy(folder) or Path(folder)
    config = load_config(found)
    kind: type[SavedPolicy] = RulePolicy if config.rules else PolicySampler
    policy = found.resolve() if config.rules else load_policy(found)[0]
    return kind(policy, config, cost_per_nfe, fingerprint=folder_digest(found))  # type: ignore[arg-type]


def scores_used(settings: EnvSettings) -> ScoresUsed:
    """(part, how) of each scorer that a policy of an environment is rewarded by, keeps images by, or observes."""
    pairs = [(part, f"its reward term {name} pays by it") for name, part in make_reward(settings.reward).pays_by]
    refine = refine_config(settings.refine)
    if refine.enabled and refine.accept == "score":
        pairs.append(("preference", "it keeps a refinement by it"))
    if refine.enabled and refine.accept == "best":
        pairs += [(part, "it keeps the attempt with the best such score") for part in refine.utility.parts]
    used = {part for part, _ in pairs}
    seen = parts_shown(settings.keys(), refine.utility.parts)
    pairs += [(part, "it observes it at its decisions") for part in seen if part not in used]
    return tuple(dict.fromkeys(pairs))


def run_name(folder: str | Path) -> str:
    """The name of a run's folder in the names of its policy.

    >>> run_name("runs/emoji"), run_name("runs/emoji/policy")
    ('emoji', 'emoji')
    """
    path = Path(folder)
    return path.parent.name if path.name == "policy" else path.name


def _controls(text: str) -> tuple[str, tuple[str, ...]]:
    """Splits a name into the part before the controls and the controls, in the order of :data:`CONTROLS`."""
    head, given = text, []
    while head.rpartition(",")[2] in CONTROLS:
        head, _, control = head.rpartition(",")
        given.append(control)
    after = head.rpartition("@")[2] if "@" in head else ""
    if "," in after:
        raise unknown("control of a policy", after.rpartition(",")[2], CONTROLS)
    if len(set(given)) < len(given):
        raise ConfigError(f"a control of policy:{text} is given twice", "name it once")
    return head, tuple(control for control in CONTROLS if control in given)


def _cost_per_nfe(text: str, folder: str) -> float | None:
    if not text:
        return None
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?nfe", text):
        config = load_config(find_policy(folder) or Path(folder))
        return round(config.cost_per_nfe_for(float(text.removesuffix("nfe"))), 6)
    try:
        cost_per_nfe = float(text)
    except ValueError:
        cost_per_nfe = float("nan")
    if not cost_per_nfe >= 0:
        raise ConfigError(
            f"the cost per NFE of a policy must be a number of at least 0, got {text!r}", "write policy:FOLDER@0.01"
        )
    return cost_per_nfe


def _with_text(lane: Lane, text: np.ndarray) -> Lane:
    """A lane whose scores carry the (1, D) text embedding of another prompt."""
    scores = None if lane.scores is None else replace(lane.scores, clip_text=text)
    best = None if lane.best is None else replace(lane.best, scores=replace(lane.best.scores, clip_text=text))
    return replace(lane, scores=scores, best=best)
