"""Episodes of the tabular MDP equal those of the environment; recordings can be interrupted and resumed."""

import re
from dataclasses import replace

import numpy as np
import pytest
import rounding

from addiffusion_env.agents.tabular_training import make_mdp
from addiffusion_env.envs.env import AdDiffusionEnv
from addiffusion_env.errors import CapabilityError, ConfigError, NumericsError, ResumeError
from addiffusion_env.observations.features import Observer
from addiffusion_env.rewards import make_reward
from addiffusion_env.scorers.utility import calibrator_of
from addiffusion_env.tabular.fit_calibrator import fit_calibrator
from addiffusion_env.tabular.mdp import States
from addiffusion_env.tabular.outcomes import oracle, play_table, regret, worth
from addiffusion_env.tabular.recorder import check_recordable
from addiffusion_env.tabular.table import AttemptTable
from addiffusion_env.tabular.tabular_env import TabularVecEnv

CONTINUE, STOP, REFINE = 0, 1, 2
PATHS = [
    [CONTINUE, CONTINUE, CONTINUE, STOP],  # full schedule, accepted
    [CONTINUE, STOP, STOP],  # early exit, accepted
    [STOP, STOP],  # early exit before the first evaluation
    [CONTINUE, REFINE, CONTINUE, REFINE, STOP],  # no refinement is left: an early exit ends the episode
    [
        CONTINUE,
        CONTINUE,
        CONTINUE,
        REFINE,
        STOP,
        REFINE,
        CONTINUE,
        CONTINUE,
    ],  # the best of three finished images is returned
    pytest.param([STOP, REFINE, CONTINUE, CONTINUE, STOP], marks=pytest.mark.numeric),
]


KEYS = {
    "previews": ["clip", "timestep", "quality", "cost_per_nfe", "attempts", "correctness", "features", "checked"],
    "no previews": "denoiser_checked",
}


# With one lane at a time both make the same calls with the same batch shapes, so everything is equal except the order
# in which NumPy sums the denoiser's features.
SAME = 1e-6


@pytest.mark.parametrize("keys", KEYS)
@pytest.mark.parametrize("path", PATHS, ids=str)
def test_the_tabular_mdp_equals_the_environment(mdp, images, tabular_settings, path, keys):
    check_equal(mdp, images[:2], replace(tabular_settings, observation_keys=KEYS[keys]), path)


@pytest.mark.parametrize(
    "path",
    [
        [STOP, REFINE, STOP, REFINE, CONTINUE, CONTINUE, CONTINUE],  # two early exits, then the whole schedule
        [CONTINUE, REFINE, STOP, REFINE, CONTINUE, STOP],
    ],
    ids=str,
)
def test_attempts_that_begin_before_the_first_evaluation_equal_the_environment(from_start, images, path):
    """With ``return_to=0`` every attempt begins with a decision, and may be an early exit from pure noise."""
    mdp, settings = from_start
    assert mdp.table.starts
    check_equal(mdp, images[:2], settings, path)


def test_attempts_without_decisions_inside_equal_the_environment(whole_attempts, images):
    """The policy decides before each attempt and about each finished image; no preview is scored."""
    mdp, settings = whole_attempts
    assert mdp.table.steps == () and mdp.table.starts
    check_equal(mdp, images[:2], settings, [STOP, REFINE, CONTINUE, REFINE, STOP])


def test_previews_have_their_own_calibrator_in_both(mdp, images, tabular_settings, tmp_path):
    path = tmp_path / "previews.safetensors"
    fit_calibrator(mdp.table, calibrator_of("emoji")).save(path)
    named = {**tabular_settings.refine, "utility": {"calibrator": str(path)}}
    settings = replace(tabular_settings, refine=named, observation_keys=["correctness", "attempts"])
    own = make_mdp(mdp.table, settings)
    finish = mdp.table.finish
    np.testing.assert_array_equal(own.utilities[:, :, finish:], mdp.utilities[:, :, finish:])
    assert np.abs(own.utilities - mdp.utilities)[:, :, :finish].min() > 0.01
    check_equal(own, images[:2], settings, [CONTINUE, CONTINUE, REFINE, CONTINUE, CONTINUE, STOP])
    with pytest.raises(ConfigError, match=r"asked about previews of \[1\]"):
        AdDiffusionEnv(**{**vars(settings), "decide_at": [1, 2, 3]})


def test_an_oracle_drops_attempts_by_early_exits(from_start):
    """The cheapest way past an attempt is an early exit before the first evaluation."""
    table = from_start[0].table
    values = np.zeros_like(table.nfe)
    values[:, 2, table.finish] = 1.0
    utility, spent = oracle(table, values, 0.01)
    np.testing.assert_allclose(spent, 2 * table.nfe[0, 0, -1] + table.nfe[:, 2, table.finish])
    np.testing.assert_allclose(utility, 1 - 0.01 * spent)


def check_equal(mdp, images, tabular_settings, path):
    """Plays ``path`` in the environment and on the table; both must agree at every decision."""
    table = mdp.table
    kwargs = {name: getattr(tabular_settings, name) for name in tabular_settings.__dataclass_fields__}
    env = AdDiffusionEnv(**kwargs)
    observer, reward = table.observer(tabular_settings.keys()), make_reward(tabular_settings.reward)
    for row, (prompt, seed) in enumerate(images):
        cost_per_nfe = 0.01 * row
        seen, info = env.reset(seed=0, options={"prompt": prompt, "seed": seed, "cost_per_nfe": cost_per_nfe})
        states = States.start(np.array([row]), np.arange(table.attempts)[None], np.array([cost_per_nfe]))
        for number, action in enumerate(path):
            told = observer.observe(mdp.frame(states))
            for key, value in seen.items():
                np.testing.assert_allclose(
                    told[key][0], value, rtol=0, atol=SAME, err_msg=f"{key} before action {number}"
                )
            assert mdp.masks(states)[0].tolist() == env.action_masks().tolist()
            seen, paid, ended, _, info = env.step(action)
            step = mdp.step(states, np.array([action]))
            transition = mdp.transition(states, step, np.array([action]))
            assert reward(transition)[0][0] == pytest.approx(paid, abs=SAME)
            states = step.states
            assert bool(step.ended[0]) == ended
            assert mdp.nfe(states)[0] == pytest.approx(info["nfe"])
            assert mdp.network_calls(states)[0] == info["network_calls"]
        assert ended, "the paths end their episodes"
        attempt, place = step.image[0]
        assert table.preference[row, attempt, place] == pytest.approx(info["preference"], abs=SAME)
    env.close()


def test_a_later_first_refinement_applies_to_the_table_too(table, tabular_settings):
    """Legality is derived from the engine, so every setting of it applies to the table."""
    settings = replace(tabular_settings, refine={**tabular_settings.refine, "first_step": 3})
    env = AdDiffusionEnv(**{name: getattr(settings, name) for name in settings.__dataclass_fields__})
    env.reset(seed=0, options={"prompt": table.prompts[0], "seed": 5})
    mdp, states = make_mdp(table, settings), States.start(np.array([0]), np.arange(3)[None], np.zeros(1))
    for action, may_refine in ((CONTINUE, False), (CONTINUE, True), (REFINE, False), (STOP, True)):
        env.step(action)
        states = mdp.step(states, np.array([action])).states
        assert env.action_masks()[REFINE] == mdp.masks(states)[0, REFINE] == may_refine


def test_without_refinement_an_episode_is_one_attempt(table, tabular_settings):
    mdp = make_mdp(table, replace(tabular_settings, refine={**tabular_settings.refine, "limit": 0}))
    assert mdp.transitions.legal.shape == (1, 7, 3) and not mdp.transitions.legal[..., REFINE].any()
    other = replace(tabular_settings, decide_at=[2], steps=4)
    with pytest.raises(
        ConfigError, match=r"recorded with decisions at steps \[2, 3\], the environment has them at \[2\]"
    ):
        make_mdp(table, other)


@pytest.mark.numeric
def test_recording_in_batches_changes_results_by_rounding_only(recorder, mdp, table, images):
    """Functions of scores differ by the rounding times their slope, which is large for a calibrator's log-odds."""
    together = recorder.record(images[:2], lanes=2)
    alone = table.rows([0, 1])
    np.testing.assert_array_equal(together.nfe, alone.nfe)
    np.testing.assert_allclose(together.clip_score, alone.clip_score, rtol=0, atol=rounding.CLIP_SCORE)
    np.testing.assert_allclose(together.preference, alone.preference, rtol=0, atol=rounding.PREFERENCE)
    np.testing.assert_allclose(together.change, alone.change, rtol=0, atol=rounding.SEEN)
    scores = alone.preference, alone.clip_score, alone.clip_text
    allowed = rounding.of_calibrator(mdp.utility, *scores)
    odds = mdp.utility(together.preference, together.clip_score, together.clip_text)
    assert (np.abs(odds - mdp.utility(*scores)) <= allowed)[~np.isnan(odds)].all()
    assert (
        np.nanmax(allowed) > 10 * rounding.PREFERENCE
    )  # a single tolerance for all values would be too small by a factor of ten


def test_play_table_counts_and_chooses(mdp, table):
    observer = Observer(table.clip_text.shape[1], ("quality",))

    def until_the_last(observation, legal):
        """Finishes every attempt and accepts only the last."""
        return np.where(legal[:, CONTINUE], CONTINUE, np.where(legal[:, REFINE], REFINE, STOP))

    outcomes = play_table(mdp, until_the_last, observer, 0.01)
    ends = mdp.utilities[:, :, table.finish]
    liked = mdp.utility(outcomes.preference, outcomes.clip_score, mdp.table.clip_text)
    np.testing.assert_allclose(liked, ends.max(1))
    np.testing.assert_allclose(outcomes.nfe, table.nfe[:, :, table.finish].sum(1))
    assert outcomes.looks.tolist() == [6] * len(table) and outcomes.finishes.tolist() == [3] * len(table)
    best = table.correct[np.arange(len(table)), ends.argmax(1), table.finish]
    np.testing.assert_array_equal(outcomes.correct, best)
    assert set(outcomes.actions) == {(0, 0, 0, 2, 0, 0, 2, 0, 0)}


def test_a_non_finite_reward_is_an_error(mdp, table, tabular_settings, monkeypatch):
    env = TabularVecEnv(mdp, tabular_settings, 3, seed=1)
    env.reset()
    words = rf"reward term 'nfe_cost' is nan in lane 1, prompt '{re.escape(table.prompts[env.states.row[1]][:60])}"
    sick = np.array([0.0, np.nan, 0.0])
    monkeypatch.setitem(env.reward._terms, "nfe_cost", lambda transition: sick)
    with pytest.raises(NumericsError, match=words):
        env.step(np.zeros(3, int))


def test_tabular_env_masks_and_resets(mdp, table, tabular_settings):
    env = TabularVecEnv(mdp, tabular_settings, 16, seed=1)
    rng = np.random.default_rng(0)
    observation, ended = env.reset(), 0
    for _ in range(40):
        for key, box in env.observation_space.spaces.items():
            assert observation[key].shape == (16, *box.shape) and np.isfinite(observation[key]).all()
        masks = env.action_masks()
        observation, rewards, dones, infos = env.step(np.array([rng.choice(np.flatnonzero(mask)) for mask in masks]))
        assert np.isfinite(rewards).all()
        for lane in np.flatnonzero(dones):
            ended += 1
            assert set(infos[lane]["terminal_observation"]) == set(observation)
            assert infos[lane]["nfe"] > 0
    assert ended > 50


def test_regret_of_known_values(mdp, table, tabular_settings):
    reward = make_reward({"terminal_bonus": 1.0, "nfe_cost": 1.0})
    np.testing.assert_allclose(
        worth(reward, table.preference[:, :, 2], table.clip_score[:, :, 2], table.clip_text),
        table.preference[:, :, 2],
        rtol=1e-6,
    )
    observer = Observer(table.clip_text.shape[1], ("quality",))
    constant = play_table(mdp, lambda seen, legal: np.where(legal[:, 0], CONTINUE, STOP), observer, 0.5)
    found = regret(table, constant, reward, 0.5)
    single = (table.preference[:, 0, table.finish] - 0.5 * table.nfe[:, 0, table.finish]).mean()
    assert found.utility == pytest.approx(single, abs=1e-5)
    name, best = found.best_constant, found.constant_utility
    assert found.to_constant == pytest.approx(best - single, abs=1e-5) and found.to_constant >= 0
    assert found.oracle_utility >= best and "best of 1" in name  # at such a cost per NFE a second attempt does not pay


def test_shards_are_reused_and_damaged_ones_recorded_again(recorder, images, table, tmp_path):
    images = images[:2]
    first = recorder.record_shards(images, tmp_path, lanes=4, size=1)
    files = sorted(tmp_path.glob("*.parquet"))
    assert len(files) == 2
    np.testing.assert_allclose(first.preference, table.preference[:2], atol=rounding.PREFERENCE)
    files[0].write_bytes(files[0].read_bytes()[:100])
    stamp = files[1].stat().st_mtime_ns
    with pytest.warns(UserWarning, match="not a table of attempts"):
        again = recorder.record_shards(images, tmp_path, lanes=4, size=1)
    assert files[1].stat().st_mtime_ns == stamp  # read, not recorded again
    np.testing.assert_array_equal(again.preference, first.preference)
    assert again.prompts == first.prompts and again.steps == (2, 3)


def test_a_saved_table_is_loaded_unchanged(table, tmp_path):
    table.save(tmp_path / "t.parquet")
    back = AttemptTable.load(tmp_path / "t.parquet")
    for name in table.__dataclass_fields__:
        old, new = getattr(table, name), getattr(back, name)
        if isinstance(old, np.ndarray):
            np.testing.assert_array_equal(new, old, err_msg=name)
        else:
            assert new == old, name
    kinds = [table.kind(place) for place in range(table.preference.shape[2])]
    assert kinds == ["step 2", "step 3", "end", "landed from 2", "landed from 3", "landed from the start"]


def test_a_table_without_features_refuses_keys_that_need_them(recorder, table, tmp_path):
    """As in files of earlier versions: the table is loaded, and other keys can be observed."""
    import pyarrow.parquet as pq

    assert table.features.shape[-1] == recorder.backbone.capabilities.feature_dim > 0
    assert replace(recorder, features=False).fingerprint != recorder.fingerprint
    table.save(tmp_path / "t.parquet")
    kept = pq.read_table(tmp_path / "t.parquet").drop_columns("features")
    old_names = {"image": "picture", "constraints": "demands"}
    renamed = kept.rename_columns([old_names.get(name, name) for name in kept.column_names])
    pq.write_table(renamed.replace_schema_metadata(kept.schema.metadata), tmp_path / "old.parquet")
    old = AttemptTable.load(tmp_path / "old.parquet")
    np.testing.assert_array_equal(old.preference, table.preference)
    assert old.observer(["clip", "checked"]).space["checked"].shape == (4,)
    with pytest.raises(CapabilityError, match="features=True"):
        old.observer(["features"])
    with pytest.raises(ConfigError, match="cannot be joined"):
        AttemptTable.join([old, table])


def test_a_table_of_something_else_is_refused(recorder, table, tmp_path):
    (tmp_path / "x.parquet").write_bytes(b"no table")
    with pytest.raises(ResumeError, match="not a table of attempts"):
        AttemptTable.load(tmp_path / "x.parquet")
    for change in ({"check_finished": False}, {"decide_at": (1, 2)}, {"solver": "dpmpp_2m"}):
        refine = recorder.process.refine
        if "check_finished" in change:
            change["refine"] = replace(refine, accept="always")
        with pytest.raises(ConfigError, match="table of attempts"):
            check_recordable(replace(recorder.process, **change))
