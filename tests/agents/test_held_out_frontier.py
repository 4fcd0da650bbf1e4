"""The frontier that target_nfe goes by: on prompts that the training did not see, and true on others."""

import json
import shutil

import numpy as np
import pytest
from huggingface_hub import ModelCard

from addiffusion_env.agents.algorithms import make_model
from addiffusion_env.agents.callbacks import EpisodeLog
from addiffusion_env.agents.checkpoints import Snapshot
from addiffusion_env.agents.factory import make_vec_env
from addiffusion_env.agents.hub_policy import HubPolicy
from addiffusion_env.agents.policy_file import PRETRAINED, load_config, load_policy
from addiffusion_env.agents.tabular_training import (
    TabularConfig,
    held_out_frontier,
    held_out_prompts,
    make_mdp,
    measured_frontier,
    record_table,
)
from addiffusion_env.envs.settings import EnvSettings
from addiffusion_env.prompts.emoji_grammar import parse, split_of
from addiffusion_env.tabular.table import AttemptTable

EMOJI = PRETRAINED / "emoji"


def ids(prompts):
    return [prompt.prompt_id for prompt in prompts]


# ---- which prompts


def test_held_out_prompts_are_of_the_training_split_and_not_on_the_table():
    settings, tabular = EnvSettings.of(prompt_options={"split": "train"}), TabularConfig(images=96, held_out=64)
    trained = settings.prompt_source().take(tabular.images, seed=tabular.prompt_seed)
    found = held_out_prompts(settings, tabular)
    assert len(set(ids(found))) == 64 and not set(ids(found)) & set(ids(trained))
    assert {split_of(parse(prompt.text)) for prompt in found} == {"train"}
    assert {prompt.task for prompt in found} == {prompt.task for prompt in trained}  # no kind is left out
    assert held_out_prompts(settings, tabular) == found
    met = set(ids(found)[:10])
    others = ids(held_out_prompts(settings, tabular, met))  # those met in live episodes are replaced
    assert len(set(others)) == 64 and not set(others) & (met | set(ids(trained)))


@pytest.mark.parametrize(("held_out", "expected"), [(5, 5), (0, 0), (20, 14)])
def test_a_file_gives_what_it_has(tmp_path, held_out, expected):
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(f"a photo of {n} dogs" for n in range(20)))
    settings = EnvSettings.of(prompts="text_file", prompt_options={"path": str(path)})
    tabular = TabularConfig(images=6, held_out=held_out)
    trained = settings.prompt_source().take(6, seed=tabular.prompt_seed)
    found = held_out_prompts(settings, tabular)
    assert len(set(ids(found))) == expected and not set(ids(found)) & set(ids(trained))
    assert held_out_prompts(settings, TabularConfig(images=20, held_out=5)) == []


def test_a_grammar_without_further_prompts_gives_none():
    settings = EnvSettings.of(prompt_options={"split": "train", "tasks": ["single_object"]})
    assert held_out_prompts(settings, TabularConfig(images=32, held_out=5000)) == []


def test_a_grammar_that_cannot_replace_the_prompts_that_were_met_gives_the_others():
    settings = EnvSettings.of(prompt_options={"split": "train", "tasks": ["single_object"]})
    tabular = TabularConfig(images=4, held_out=4)
    found = ids(held_out_prompts(settings, tabular))
    met = {found[0], *map(str, range(5000))}
    assert ids(held_out_prompts(settings, tabular, met)) == found[1:]


def test_prompts_of_live_episodes_are_remembered_over_a_resume():
    env = make_vec_env("lanes", 2, 0, {"steps": 2, "cost_per_nfe": 0.01})
    model = make_model("maskable_ppo", env, {"n_steps": 2, "batch_size": 4, "n_epochs": 1}, 0, "cpu")
    log = EpisodeLog({})
    log.restore({"episodes": [], "prompt_ids": ["met-before"]})
    model.learn(4, callback=log)
    assert "met-before" in log.prompt_ids and sum(name.startswith("emoji-") for name in log.prompt_ids) >= 2
    again = EpisodeLog({})
    again.restore(Snapshot(model, env, list(log.episodes), log.prompt_ids).state)
    assert again.prompt_ids == log.prompt_ids
    again.restore({"episodes": []})  # of a version that did not keep them
    env.close()


# ---- what is measured


@pytest.mark.slow
def test_the_frontier_is_that_of_the_held_out_table(tmp_path):
    policy, config = load_policy(EMOJI)
    environment = {**config.environment, "refine": {**config.environment["refine"], "limit": 1}}
    settings, tabular = EnvSettings.of(**environment), TabularConfig(images=1, attempts=2, held_out=2)
    trained = record_table(settings, tabular, tmp_path / "table", 2)
    frontier, words = held_out_frontier(policy, make_mdp(trained, settings), settings, tabular, tmp_path, 2)
    [path] = (tmp_path / "held_out").glob("*.parquet")
    table = AttemptTable.load(path)
    assert len(table) == 2 and not set(table.prompt_ids) & set(trained.prompt_ids)
    assert words == "2 prompts of the training source that were held out of training"
    assert frontier == measured_frontier(policy, make_mdp(table, settings), settings)
    off = TabularConfig(images=1, attempts=2, held_out=0)
    on_table = held_out_frontier(policy, make_mdp(trained, settings), settings, off, tmp_path / "none", 2)
    assert on_table == (measured_frontier(policy, make_mdp(trained, settings), settings), "1 training prompts")
    assert not (tmp_path / "none").exists()
    seen = table.prompt_ids[:1]
    held_out_frontier(policy, make_mdp(trained, settings), settings, tabular, tmp_path / "other", 2, seen=seen)
    [path] = (tmp_path / "other" / "held_out").glob("*.parquet")
    assert len(AttemptTable.load(path)) == 2 and not set(AttemptTable.load(path).prompt_ids) & {
        *seen,
        *trained.prompt_ids,
    }
    (tmp_path / "prompts.txt").write_text("a photo of a dog\na photo of a cat")
    few = {**environment, "prompts": "text_file", "prompt_options": {"path": str(tmp_path / "prompts.txt")}}
    settings = EnvSettings.of(**few)
    with pytest.warns(UserWarning, match=r"tabular\.held_out=2: the training source holds 1 prompts that were not"):
        _, words = held_out_frontier(policy, make_mdp(trained, settings), settings, tabular, tmp_path / "few", 2)
    assert words.startswith("1 prompts of the training source")


def test_the_shipped_policy_spends_on_test_prompts_what_its_frontier_says():
    """Within a tenth: what was measured on its own training prompts was 23 to 28 % off."""
    config = load_config(EMOJI)
    assert "held out" in config.frontier_prompts
    rows = config.results["rows"]
    costs_per_nfe = [float(row["sampler"].partition("@")[2]) for row in rows]
    spent = [row["nfe"]["estimate"] for row in rows]
    told = np.interp(costs_per_nfe, *zip(*config.frontier, strict=True))
    np.testing.assert_allclose(told, spent, rtol=0.1)
    for target in np.arange(1.6, 2.8, 0.1):  # all that the policy can reach
        at = np.interp(config.cost_per_nfe_for(target), costs_per_nfe, spent)
        assert at == pytest.approx(target, rel=0.1)


# ---- what is told


def test_the_card_says_on_which_prompts_also_of_older_policies(tmp_path):
    HubPolicy.from_pretrained("emoji").save_pretrained(tmp_path / "new")
    card = ModelCard.load(tmp_path / "new" / "README.md").text
    assert f"the mean NFE at that cost, on {load_config(EMOJI).frontier_prompts} (`target_nfe`" in card
    shutil.copytree(EMOJI, tmp_path / "old")
    raw = json.loads((EMOJI / "config.json").read_text(encoding="utf-8"))
    del raw["frontier_prompts"]
    (tmp_path / "old" / "config.json").write_text(json.dumps(raw))
    HubPolicy.from_pretrained(tmp_path / "old").save_pretrained(tmp_path / "again")
    card = ModelCard.load(tmp_path / "again" / "README.md").text
    assert "the mean NFE at that cost, on training prompts (`target_nfe` interpolates here)" in card
