"""The frontier that target_nfe goes by: on prompts that the training did not see, and true on others."""

import json
import shutil

import numpy as np
import pytest
from huggingface_hub import ModelCard

from addiffusion_env import ENVIRONMENTS
from addiffusion_env.agents.algorithms import make_model
from addiffusion_env.agents.callbacks import EpisodeLog
from addiffusion_env.agents.checkpoints import Snapshot
from addiffusion_env.agents.factory import make_rollouts
from addiffusion_env.agents.make import make_policy
from addiffusion_env.agents.policy_file import PRETRAINED, load_config, load_policy
from addiffusion_env.agents.recording import Recording, TabularConfig
from addiffusion_env.agents.tabular_training import held_out_frontier, make_mdp, measured_frontier
from addiffusion_env.errors import PromptError
from addiffusion_env.prompts import PromptList
from addiffusion_env.prompts.emoji_grammar import parse, split_of
from addiffusion_env.tabular.table import AttemptTable

EMOJI = PRETRAINED / "emoji"


def ids(prompts):
    return [prompt.prompt_id for prompt in prompts]


def recording_of(environment, folder=None, **tabular):
    return Recording(environment, TabularConfig(**tabular), folder, lanes=2)


# ---- which prompts


def test_held_out_prompts_are_of_the_training_split_and_not_on_the_table():
    recording = recording_of({"prompt_options": {"split": "train"}}, images=96, held_out=64)
    trained, found = recording.prompts(), recording.held_out_prompts()
    assert len(set(ids(found))) == 64 and not set(ids(found)) & set(ids(trained))
    assert {split_of(parse(prompt.text)) for prompt in found} == {"train"}
    assert {prompt.task for prompt in found} == {prompt.task for prompt in trained}  # no kind is left out
    assert recording.held_out_prompts() == found


def test_further_prompts_take_the_place_of_those_that_live_episodes_used():
    recording = recording_of({"prompt_options": {"split": "train"}}, images=96, held_out=64)
    trained, found = ids(recording.prompts()), ids(recording.held_out_prompts())
    source = recording.settings.prompt_source()
    used = {*found[3:10], *ids(source.take(170, seed=101))[164:], "of no prompt here"}  # of the next ones, too
    again = ids(recording.held_out_prompts(used))
    assert len(set(again)) == 64 and not set(again) & {*trained, *used}
    assert again[:57] == [name for name in found if name not in used]
    # They are the first unused ones of the source, whatever order the used ones are given in: a resume reads them.
    assert again == [name for name in ids(source.take(300, seed=101)) if name not in {*trained, *used}][:64]
    resumed = recording_of({"prompt_options": {"split": "train"}}, images=96, held_out=64)
    assert ids(resumed.held_out_prompts(sorted(used))) == again


@pytest.mark.parametrize(("held_out", "expected"), [(5, 5), (0, 0), (20, 14)])
def test_a_file_gives_what_it_has(tmp_path, held_out, expected):
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(f"a photo of {n} dogs" for n in range(20)))
    environment = {"prompts": "text_file", "prompt_options": {"path": str(path)}}
    recording = recording_of(environment, images=6, held_out=held_out)
    trained, found = ids(recording.prompts()), ids(recording.held_out_prompts())
    assert len(set(found)) == expected and not set(found) & set(trained)
    if held_out == 5:
        again = ids(recording.held_out_prompts(found))
        assert len(again) == 5 and not set(again) & {*trained, *found}
    assert recording_of(environment, images=20, held_out=5).held_out_prompts() == []


def test_fewer_prompts_than_were_asked_for_are_said(tmp_path, capsys):
    path = tmp_path / "prompts.txt"
    path.write_text("a photo of a dog")
    process = {**ENVIRONMENTS["AdDiffusion-Emoji-v2"], "prompts": "text_file", "prompt_options": {"path": str(path)}}
    table = recording_of(process, tmp_path, images=2, attempts=2).table()
    assert len(table) == 1
    assert "prompts: 1 in all, fewer than tabular.images=2" in capsys.readouterr().out


def test_a_grammar_gives_what_it_has():
    environment = {"prompt_options": {"split": "train", "tasks": ["single_object"]}}
    recording = recording_of(environment, images=32, held_out=5000)
    found, source = ids(recording.held_out_prompts()), recording.settings.prompt_source()
    every = ids(recording.prompts()) + found
    assert len(found) > 5 and every == ids(source.take(len(every), seed=101))
    with pytest.raises(PromptError, match="different prompts, found"):
        source.take(len(every) + 1, seed=101)
    assert ids(recording.held_out_prompts(found[1:])) == found[:1]


def test_a_source_that_repeats_its_prompts_ends():
    class Repeating(PromptList):
        def take(self, count, seed):
            return [self.prompts[at % len(self.prompts)] for at in range(count)]

    recording = recording_of({"prompts": Repeating([f"a photo of {n} dogs" for n in range(9)])}, images=6, held_out=5)
    assert len(set(ids(recording.held_out_prompts()))) == 3


def test_prompts_of_live_episodes_are_remembered_over_a_resume():
    env = make_rollouts({"kind": "local"}, 2, 0, {"steps": 2, "cost_per_nfe": 0.01})
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
    recording = recording_of(environment, tmp_path, images=1, attempts=2, held_out=2)
    settings, trained = recording.settings, recording.table()
    mdp = make_mdp(trained, settings)
    frontier, words = held_out_frontier(policy, mdp, recording)
    [path] = (tmp_path / "held_out").glob("*.parquet")
    table = AttemptTable.load(path)
    assert len(table) == 2 and not set(table.prompt_ids) & set(trained.prompt_ids)
    assert words == "2 prompts of the training source that were held out of training"
    assert frontier == measured_frontier(policy, make_mdp(table, settings), settings)
    off = recording_of(environment, tmp_path / "none", images=1, attempts=2, held_out=0)
    assert held_out_frontier(policy, mdp, off) == (measured_frontier(policy, mdp, settings), "1 training prompts")
    assert not (tmp_path / "none").exists()
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join((*trained.prompts, "a photo of a dog", "two red cups")))
    few = recording_of(
        {**environment, "prompts": "text_file", "prompt_options": {"path": str(path)}},
        tmp_path / "few",
        images=1,
        attempts=2,
        held_out=2,
    )
    seen = ids(few.held_out_prompts())[:1]
    with pytest.warns(UserWarning, match=r"tabular\.held_out=2: the training source holds 1 prompts that were not"):
        assert held_out_frontier(policy, mdp, few, seen)[1].startswith("1 prompts of the training source")


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
    make_policy("emoji").save_pretrained(tmp_path / "new")
    card = ModelCard.load(tmp_path / "new" / "README.md").text
    assert f"the mean NFE at that cost, on {load_config(EMOJI).frontier_prompts} (`target_nfe`" in card
    shutil.copytree(EMOJI, tmp_path / "old")
    raw = json.loads((EMOJI / "config.json").read_text(encoding="utf-8"))
    del raw["frontier_prompts"]
    (tmp_path / "old" / "config.json").write_text(json.dumps(raw))
    make_policy(tmp_path / "old").save_pretrained(tmp_path / "again")
    card = ModelCard.load(tmp_path / "again" / "README.md").text
    assert "the mean NFE at that cost, on training prompts (`target_nfe` interpolates here)" in card
