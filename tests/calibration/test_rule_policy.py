"""Rules of checked attempts: what they spend on recorded attempts, their policy folder, and the untrained default."""

import json
import warnings
from dataclasses import replace

import numpy as np
import pytest

from addiffusion_env import AdaptivePipeline
from addiffusion_env.agents.learned import load_sampler
from addiffusion_env.agents.make import make_policy
from addiffusion_env.agents.policy_file import PolicyConfig
from addiffusion_env.agents.rule_policy import RulePolicy, save_rules
from addiffusion_env.agents.sb3_zip import export_zip
from addiffusion_env.agents.untrained import (
    default_interval,
    default_policy,
    default_process,
    guidance_is_linear,
)
from addiffusion_env.backbones.pipeline_backbone import PipelineBackbone
from addiffusion_env.calibration.calibrate import best_at_some_cost
from addiffusion_env.calibration.held_out import HeldOut, every_order, measured_rules
from addiffusion_env.engine.engine import Engine
from addiffusion_env.engine.process import Action
from addiffusion_env.envs.settings import EnvSettings
from addiffusion_env.errors import ConfigError
from addiffusion_env.evaluation.choices import make_samplers
from addiffusion_env.evaluation.training_cost import blank_table
from addiffusion_env.samplers.checked_attempts import Rule
from addiffusion_env.scorers.utility import Calibrator, calibrator_of
from addiffusion_env.tabular.mdp import TabularMDP, Transitions
from addiffusion_env.tabular.recorder import Recorder
from addiffusion_env.tabular.rules import MeasuredRule, best_rule, costs_of, play_rule
from addiffusion_lab.tiny_pipelines import ZOO

PROCESS = {
    "backbone": "emoji",
    "steps": 3,
    "spacing": "trailing",
    "early_exit_steps": 1,
    "decide_at": [1],
    "check_finished": True,
    "refine": {"preset": "resample_keep_best", "return_to": 0, "limit": 1},
}
RULES = (
    MeasuredRule(early=1, exit_step=1, nfe=2.0, probability=0.5),
    MeasuredRule(0.5, 2, early=1, exit_step=1, nfe=3.0, probability=0.7),
    MeasuredRule(2.0, 2, nfe=5.0, probability=0.8),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A policy of three rules with the calibrator that ships with the package."""
    costs = costs_of(RULES)
    config = PolicyConfig(
        environment={**PROCESS, "cost_per_nfe": [0.0, costs[0]]},
        observation={"cost_per_nfe": (0.0, 1)},
        net_arch={},
        rules=[rule.entry() for rule in RULES],
        highest_cost_per_nfe=costs[0],
        default_cost_per_nfe=costs[1],
        frontier=tuple((cost, rule.nfe) for cost, rule in zip(costs, RULES, strict=True)),
    )
    path = tmp_path_factory.mktemp("calibration")
    save_rules(path / "policy", config, calibrator_of("emoji"))
    return path


@pytest.fixture(scope="module")
def played(folder, emoji, scorers, prompts):
    """The policy and its process, images, and the decision process on a table of their attempts."""
    policy = load_sampler(folder)
    policy.bind(emoji, scorers)
    process = policy.process(EnvSettings(refine="off").process(emoji.capabilities, emoji.name))
    images = [(prompt, 0) for prompt in prompts[:2]]
    table = Recorder(emoji, scorers, process, attempts=2).record(images)
    return policy, process, images, TabularMDP(table, Transitions.of(emoji, process), 1, 0, 1, process.refine.utility)


ON_ENGINE = (
    Rule(early=1, exit_step=1),
    Rule(np.inf, 2, early=2),
    Rule(np.inf, 2, early=1, exit_step=1),
    Rule(0.0, 2),
    Rule(0.0, 2, abandon=np.inf),
)


@pytest.mark.parametrize("rule", ON_ENGINE, ids=str)
def test_a_rule_on_the_engine_equals_the_rule_on_the_table(rule, played, emoji, scorers):
    policy, process, images, mdp = played
    policy.rule = rule
    made = Engine(emoji, scorers, decider=policy.decide).run(
        policy.coroutine(emoji, process, *image) for image in images
    )
    told = play_rule(mdp, rule)
    assert tuple(episode.lane.actions for episode in made) == told.outcomes.actions
    np.testing.assert_allclose([episode.lane.nfe for episode in made], told.outcomes.nfe)
    odds = np.array([episode.image.scores.utility(process.refine.utility) for episode in made])
    np.testing.assert_allclose(1 / (1 + np.exp(-odds)), told.probability, atol=1e-4)


def test_a_rule_is_measured_with_every_attempt_first(played):
    mdp = played[-1]
    odds, nfe = mdp.utilities[:, :, mdp.table.finish], mdp.table.nfe[:, :, mdp.table.finish]
    least = float(np.median(odds))
    spent, value = [], []
    for first in range(2):
        accepted = odds[:, first] >= least
        spent.append(nfe[:, first] + np.where(accepted, 0, nfe[:, 1 - first]))
        value.append(np.where(accepted, odds[:, first], odds.max(1)))
    told = play_rule(replace(mdp, table=every_order(mdp.table)), Rule(least, 2))
    assert told.nfe == pytest.approx(np.mean(spent))
    assert told.mean_probability == pytest.approx((1 / (1 + np.exp(-np.array(value)))).mean())


def test_calibrators_judge_prompts_that_they_were_not_fitted_to(played, emoji, scorers, prompts):
    process = played[1]
    table = blank_table(prompts, emoji, scorers, process, 2, features=False)
    table = replace(table, prompt_ids=tuple(f"{row // 2}" for row in range(len(table))))
    utility = HeldOut.fitted(table)
    assert (utility.fold[::2] == utility.fold[1::2]).all() and set(utility.fold) == set(range(4))
    held = utility.fold == 0
    louder = replace(table, preference=np.where(held[:, None, None], 9, table.preference).astype(np.float32))
    one, other = (each.calibrators for each in (utility, HeldOut.fitted(louder)))
    np.testing.assert_array_equal(one[0].means, other[0].means)
    assert not np.array_equal(one[1].means, other[1].means)
    measured = measured_rules(table, Transitions.of(emoji, process))
    assert len({one.rule for one in measured}) == len(measured) and len(measured[0].probability) == 2 * len(table)


def test_the_hull_holds_the_best_rule_at_every_cost():
    rng = np.random.default_rng(0)
    points = zip(1 + 9 * rng.random(60), rng.random(60), strict=True)
    rules = [MeasuredRule(nfe=float(nfe), probability=float(value)) for nfe, value in points]
    best = best_at_some_cost(rules)
    costs = costs_of(best)
    assert costs == sorted(costs, reverse=True) and len(best) > 2
    assert [best_rule(rules, cost) for cost in costs] == best


def test_a_rule_is_used_saved_and_found_as_a_trained_policy(folder, emoji, tmp_path):
    pipe = AdaptivePipeline(emoji, folder)
    assert isinstance(pipe.sampler, RulePolicy) and pipe.process.steps == 3
    cheap, dear = (pipe(["a photo of a dog"], target_nfe=nfe).nfe[0] for nfe in (2, 5))
    assert cheap == 2 < dear
    out = pipe(["a photo of a dog"], cost_per_nfe=0.0, return_trace=True)
    assert out.trace[0].decisions[0].probabilities[Action.CONTINUE] == 1
    pipe.save_pretrained(tmp_path / "copy")
    assert json.loads((tmp_path / "copy" / "config.json").read_text())["rules"][1]["threshold"] == 0.5
    assert "calibrated" in (tmp_path / "copy" / "README.md").read_text()
    copy = make_policy(tmp_path / "copy")
    assert copy.rules == pipe.sampler.rules
    assert np.array_equal(Calibrator.load(copy.policy / "policy.safetensors").prior, calibrator_of("emoji").prior)
    config = {"policy": str(folder), "costs_per_nfe": [None, "5nfe"], "samplers": [], "trust": False, "env": None}
    more = {"device": "auto", "dtype": "auto", "prompt_source": None, "prompt_options": None, "benchmark": None}
    samplers, settings = make_samplers({**config, **more})
    assert [sampler.rule.nfe for sampler in samplers] == [3.0, 5.0] and settings.backbone == "emoji"


def test_what_a_rule_cannot_do_is_refused(folder, tmp_path):
    with pytest.raises(ConfigError, match="no controls"):
        make_policy(f"policy:{folder},no_refine")
    with pytest.raises(ConfigError, match="no network"):
        export_zip(folder, tmp_path / "rule.zip")
    with pytest.raises(ConfigError, match="calibrate this pipeline"):
        load_sampler(folder).check_fits("sd15", 768)


def test_without_a_scorer_a_pipeline_exits_early_and_limits_guidance():
    pipe = ZOO["sd15"]()
    with pytest.warns(UserWarning, match="early exit and guidance interval only"):
        adaptive = AdaptivePipeline(pipe)
    assert adaptive.process.guidance_interval == (0.28, 5.42) and adaptive.process.decide_at == (30,)
    out = adaptive(["a red cup", "two dogs"], num_inference_steps=10, height=16, width=16)
    assert out.actions == [[0, 1], [0, 1]] and 0 < out.nfe[0] < 10


def test_guidance_is_limited_only_where_it_is_linear():
    plain, rescaled = (PipelineBackbone(ZOO["sd15"](), {"guidance_rescale": value}) for value in (0.0, 0.7))
    assert guidance_is_linear(plain) and not guidance_is_linear(rescaled)
    assert default_interval(rescaled) is None


def test_with_scorers_the_untrained_default_checks_its_images(emoji, scorers):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe = AdaptivePipeline(emoji, default_policy(emoji, scorers)[0], default_process(emoji))
    assert pipe.process.check_finished and pipe.process.guidance_interval == (3.0, 7.0)
    out = pipe(["a photo of a bus left of a bear", "a photo of a dog"], seeds=[0, 1], return_trace=True)
    for trace, actions in zip(out.trace, out.actions, strict=True):
        assert trace.preference >= 0 or actions.count(Action.REFINE) == 2
