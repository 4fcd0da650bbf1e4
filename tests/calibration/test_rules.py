"""Rules of checked attempts: what they spend on recorded attempts, their policy folder, and the untrained default."""

import json
import warnings

import numpy as np
import pytest

from addiffusion_env import AdaptivePipeline
from addiffusion_env.agents.hub_policy import HubPolicy
from addiffusion_env.agents.make import make_policy
from addiffusion_env.agents.policy_file import PolicyConfig
from addiffusion_env.agents.rule_policy import Rule, RulePolicy, rule_entry, save_rules
from addiffusion_env.agents.sb3_zip import export_zip
from addiffusion_env.agents.untrained import default_interval, guidance_is_linear
from addiffusion_env.backbones.pipeline_backbone import PipelineBackbone
from addiffusion_env.calibration.rules import costs_of, frontier_of, measured_rules, outcome
from addiffusion_env.engine.engine import Engine
from addiffusion_env.engine.process import Action
from addiffusion_env.envs.settings import EnvSettings
from addiffusion_env.errors import ConfigError
from addiffusion_env.evaluation.choices import make_samplers
from addiffusion_env.scorers.utility import Calibrator, calibrator_of
from addiffusion_env.tabular.recorder import Recorder
from addiffusion_lab.tiny_pipelines import ZOO

PROCESS = {
    "backbone": "emoji",
    "steps": 3,
    "spacing": "trailing",
    "early_exit_steps": 1,
    "decide_at": [1],
    "check_finished": True,
    "refine": {"preset": "resample_keep_best", "return_to": 1, "limit": 1},
}
RULES = (Rule(1, 1, 0.0, 2.0, 0.5), Rule(1, 1, 0.6, 3.0, 0.7), Rule(None, 0, 0.9, 5.0, 0.8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A policy of three rules with the calibrator that ships with the package."""
    costs = costs_of(RULES)
    config = PolicyConfig(
        environment={**PROCESS, "cost_per_nfe": [0.0, costs[0]]},
        observation={"cost_per_nfe": (0.0, 1)},
        net_arch={},
        rules=[rule_entry(rule) for rule in RULES],
        highest_cost_per_nfe=costs[0],
        default_cost_per_nfe=costs[1],
        frontier=tuple((cost, rule.nfe) for cost, rule in zip(costs, RULES, strict=True)),
    )
    path = tmp_path_factory.mktemp("calibration")
    save_rules(path / "policy", config, calibrator_of("emoji"))
    return path


def test_a_rule_spends_until_an_image_is_accepted():
    """Two prompts, two attempts: the first prompt's second image is good, the second prompt's first one."""
    nfe = np.array([[[3.0], [4.0]], [[3.0], [4.0]]])
    odds = np.array([[[-2.0], [1.0]], [[2.0], [-1.0]]])
    good = 1 / (1 + np.exp(-np.array([1.0, 2.0])))
    spent, probability = outcome(nfe, odds, np.zeros(2, int), least=0.0)
    # With the first attempt first: 3 + 4 and 3; with the second first: 4 and 4 + 3.
    assert spent == pytest.approx((7 + 3 + 4 + 7) / 4) and probability == pytest.approx(good.mean())
    assert outcome(nfe, odds, np.zeros(2, int), least=-np.inf)[0] == pytest.approx(3.5)
    assert outcome(nfe, odds, np.zeros(2, int), least=np.inf)[0] == pytest.approx(7)


def test_the_frontier_holds_the_best_rule_at_every_cost():
    rng = np.random.default_rng(0)
    rules = [
        Rule(None, 0, 0.5, float(nfe), float(p)) for nfe, p in zip(1 + 9 * rng.random(60), rng.random(60), strict=True)
    ]
    frontier = frontier_of(rules)
    costs = costs_of(frontier)
    assert costs == sorted(costs, reverse=True) and len(frontier) > 2
    for rule, cost in zip(frontier, costs, strict=True):
        gains = [other.probability - cost * other.nfe for other in rules]
        assert rule.probability - cost * rule.nfe == pytest.approx(max(gains))


def test_a_rule_on_the_engine_spends_what_it_spends_on_the_table(folder, emoji, scorers, prompts):
    policy = RulePolicy.from_run(folder)
    policy.bind(emoji, scorers)
    process = policy.process(EnvSettings(refine="off").process(emoji.capabilities, emoji.name))
    images = [(prompt, 0) for prompt in prompts[:2]]
    table = Recorder(emoji, scorers, process, attempts=2).record(images)
    odds = calibrator_of("emoji")(np.nan_to_num(table.preference), np.nan_to_num(table.clip_score), table.clip_text)
    engine = Engine(emoji, scorers, decider=policy.decide)
    early, finish = table.finish + 1, table.finish
    for rule in (Rule(1, 1, 0.0, 1.0), Rule(1, 1, 1.0, 1.0), Rule(None, 0, 1.0, 1.0)):
        policy.rule = rule
        made = engine.run(policy.coroutine(emoji, process, *image) for image in images)
        first = early if rule.exit_step else finish
        for row, episode in enumerate(made):
            accepted = odds[row, 0, first] >= rule.least_utility
            assert episode.lane.nfe == table.nfe[row, 0, first] + (0 if accepted else table.nfe[row, 1, finish])
            best = max(odds[row, 0, first], -np.inf if accepted else odds[row, 1, finish])
            assert process.refine.utility.at(episode.image.scores) == pytest.approx(best, abs=1e-4)
    assert len(measured_rules(table, odds)) == 3 * len({rule.threshold for rule in measured_rules(table, odds)})


def test_a_rule_is_used_saved_and_found_as_a_trained_policy(folder, emoji, tmp_path):
    pipe = AdaptivePipeline(emoji, folder)
    assert isinstance(pipe.sampler, RulePolicy) and pipe.process.steps == 3
    cheap, dear = (pipe(["a photo of a dog"], target_nfe=nfe).nfe[0] for nfe in (2, 5))
    assert cheap == 2 < dear
    out = pipe(["a photo of a dog"], cost_per_nfe=0.0, return_trace=True)
    assert out.trace[0].decisions[0].probabilities[Action.CONTINUE] == 1
    pipe.save_pretrained(tmp_path / "copy")
    assert json.loads((tmp_path / "copy" / "config.json").read_text())["rules"][1]["threshold"] == 0.6
    assert "calibrated" in (tmp_path / "copy" / "README.md").read_text()
    copy = HubPolicy.from_pretrained(tmp_path / "copy").sampler()
    assert copy.rules == pipe.sampler.rules
    assert np.array_equal(Calibrator.load(copy.folder / "policy.safetensors").prior, calibrator_of("emoji").prior)
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
        RulePolicy.from_run(folder).check_fits("sd15", 768)


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
        pipe = AdaptivePipeline(emoji)
    assert pipe.process.check_finished and pipe.process.guidance_interval == (3.0, 7.0)
    out = pipe(["a photo of a bus left of a bear", "a photo of a dog"], seeds=[0, 1])
    for preference, actions in zip(out.preference, out.actions, strict=True):
        assert preference >= 0 or actions.count(Action.REFINE) == 2
