"""Trained policies by name: shipped, in a folder, or on the Hugging Face hub, in one format of plain files.

A policy's repository holds ``policy.safetensors``, ``config.json`` and ``README.md`` (its model card). Reading it runs
no code of theirs.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelHubMixin, snapshot_download
from stable_baselines3.common.policies import ActorCriticPolicy

from addiffusion_env.agents.learned import LearnedMethod
from addiffusion_env.agents.model_card import policy_card
from addiffusion_env.agents.policy_file import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    PolicyConfig,
    find_policy,
    load_policy,
    save_policy,
)
from addiffusion_env.backbones import BACKBONES
from addiffusion_env.backbones.hub import WORKS_OFFLINE, cache_folder, looks_like_path, reason_of
from addiffusion_env.baselines import make_method
from addiffusion_env.baselines.base import Method
from addiffusion_env.errors import WeightsError, check_keywords

CARD_FILE = "README.md"
HUB_OPTIONS = ("revision", "cache_dir", "token", "force_download", "local_files_only")
NAMED = {"oracle": "oracle_stop:preference"}
"""Short names of methods without learning."""


class HubPolicy(
    ModelHubMixin,
    library_name="addiffusion",
    license="apache-2.0",
    pipeline_tag="text-to-image",
    tags=["reinforcement-learning", "stable-baselines3", "adaptive-inference"],
):
    """A trained policy that can be saved, pushed to the hub and loaded from it.

    ``save_pretrained(folder)``, ``push_to_hub("owner/name")`` and ``from_pretrained(...)`` are huggingface_hub's own.

    >>> policy = HubPolicy.from_pretrained("emoji")
    >>> policy.details.default_price
    0.015

    Args:
        network: the policy's weights.
        details: what it was trained on, its frontier and its results.
    """

    def __init__(self, network: ActorCriticPolicy, details: PolicyConfig) -> None:
        self.network = network
        self.details = details

    @classmethod
    def of(cls, method: LearnedMethod) -> HubPolicy:
        """The policy of a method, without its price."""
        return cls(method.policy, method.config)

    def method(self, price: float | None = None) -> LearnedMethod:
        """The policy as a method, at a price of one NFE or at its own."""
        chosen = self.details.default_price if price is None else float(price)
        return LearnedMethod(self.network, self.details, chosen, f"policy@{chosen:g}")

    @classmethod
    def from_pretrained(cls, name_or_dir: str | Path, **hub: Any) -> HubPolicy:  # type: ignore[override]
        """Loads a policy by the name of a shipped one, a folder, a run's folder or a hub id.

        Args:
            name_or_dir: ``"emoji"``, ``"runs/emoji"``, ``"owner/name"``.
            **hub: ``revision``, ``cache_dir``, ``token``, ``force_download``, ``local_files_only``, for a hub id.

        Raises:
            WeightsError: when there is none, or it cannot be had.
            ConfigError: for another keyword.
        """
        folder = named_policy(name_or_dir, **hub)
        if folder is None:
            raise WeightsError(f"no policy {str(name_or_dir)!r}", "name a folder, a hub id 'owner/name', or 'emoji'")
        return super().from_pretrained(folder)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **_: Any) -> HubPolicy:
        return cls(*load_policy(Path(model_id)))

    def _save_pretrained(self, save_directory: Path) -> None:
        save_policy(save_directory, self.network, self.details)
        # The mixin keeps a card that is there; this one is written from the policy that is saved now.
        (save_directory / CARD_FILE).unlink(missing_ok=True)

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """The model card: what it is, how to use it, what it was measured to do, how it was made."""
        return policy_card(self.details, self._hub_mixin_info.model_card_data)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:  # type: ignore[override]
        """Uploads weights, configuration and model card in one commit; returns the commit's URL.

        Args:
            repo_id: ``"owner/name"``; made when it is not there.
            **options: of huggingface_hub's ``ModelHubMixin.push_to_hub``: ``private``, ``token``, ``commit_message``.

        Raises:
            WeightsError: when the hub cannot be reached or refuses, with the reason.
        """
        try:
            return super().push_to_hub(repo_id, **options)
        except Exception as error:  # of the hub's or of the HTTP library's own kinds, by version
            raise WeightsError(
                f"the policy cannot be pushed to {repo_id}: {reason_of(error)}",
                "run `hf auth login` with a token that may write there, or save_pretrained(folder) and "
                f"`hf upload {repo_id} folder` from a machine with network",
            ) from error


def make_policy(policy: str | Path | Method | HubPolicy) -> Method:
    """A method from a specification, the name of a trained policy, or what is one already.

    Args:
        policy: ``"fixed:20"``, ``"stop:12"``, ``"oracle"`` ...; ``"emoji"``, a folder or a hub id; a method.

    Raises:
        UnknownNameError: for an unknown name; the nearest known one is given.
        ConfigError: for a specification of the wrong form.
        WeightsError: for a folder or hub id without a policy.
    """
    if isinstance(policy, HubPolicy):
        return policy.method()
    if not isinstance(policy, str | Path):
        return policy
    text = NAMED.get(str(policy), str(policy))
    folder = None if ":" in text and find_policy(text) is None else named_policy(policy)
    return make_method(text) if folder is None else LearnedMethod.from_run(folder)


def named_policy(name_or_dir: str | Path, **hub: Any) -> Path | None:
    """The folder of a policy: a shipped one, a policy's or a run's folder, or a hub id's, downloaded if it must be.

    Args:
        name_or_dir: what is not a folder and reads ``owner/name`` is looked for on the hub.
        **hub: :data:`HUB_OPTIONS`.

    Returns:
        ``None`` for a bare name that is no policy's.

    Raises:
        WeightsError: when it reads like a path or a hub id and nothing is to be had there.
        ConfigError: for another keyword.
    """
    check_keywords("loading from the hub has", hub, HUB_OPTIONS)
    found = find_policy(name_or_dir)
    if found is not None:
        return found
    if os.path.isdir(name_or_dir) and str(name_or_dir) not in BACKBONES:
        raise WeightsError(
            f"{name_or_dir} holds no policy: neither it nor its folder 'policy' has a {WEIGHTS_FILE}",
            "name a folder that train_sb3.py or save_pretrained wrote",
        )
    if looks_like_path(name_or_dir):
        raise WeightsError(
            f"no such folder: {name_or_dir}", "name a policy's folder, a hub id 'owner/name', or 'emoji'"
        )
    return _downloaded(str(name_or_dir), **hub) if "/" in str(name_or_dir) else None


def _downloaded(repo_id: str, **hub: Any) -> Path:
    try:
        folder = Path(snapshot_download(repo_id, allow_patterns=[CONFIG_FILE, WEIGHTS_FILE, CARD_FILE], **hub))
    except Exception as error:  # offline it is an OSError or the HTTP library's own kind, by version
        cache = Path(hub["cache_dir"]) if hub.get("cache_dir") else cache_folder()
        raise WeightsError(
            f"{repo_id} is no folder here, and the hub's policy of that name is not in "
            f"{cache / f'models--{repo_id.replace(chr(47), chr(45) * 2)}'} and cannot be fetched: {reason_of(error)}",
            f"mend the path, or run `hf download {repo_id}` on a machine with network; {WORKS_OFFLINE}",
        ) from error
    if find_policy(folder) is None:
        raise WeightsError(
            f"the hub's repository {repo_id} is no policy: it has no {WEIGHTS_FILE}",
            "a diffusion model is named by backbone=, beside a policy",
        )
    return folder
