"""Every client of docs/howto/clients.md: its code block runs unchanged, and records the episodes correctly.

Skipped if the client is not installed; ``make test-slow`` installs those of the extra ``clients``.
"""

import re

import gymnasium as gym
import numpy as np
import pytest
import torch
from test_docs import DOCS, blocks

from addiffusion_env.envs.env import AdDiffusionEnv
from addiffusion_env.envs.settings import EnvSettings

PAGE = DOCS / "howto" / "clients.md"
CODE = [block.code for block in blocks(PAGE)]
MODES = ["next_step", "same_step", "disabled"]
pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Clients write their logs into the folder where they run."""
    monkeypatch.chdir(tmp_path)


def ran(*needles):
    """The namespace after running the page's first block and the blocks that contain one of these words."""
    chosen = [CODE[0], *(next(code for code in CODE[1:] if needle in code) for needle in needles)]
    namespace = {"__name__": "__main__"}
    for code in chosen:
        exec(compile(code, str(PAGE), "exec"), namespace)
    return namespace


def taken(actions):
    """The actions as recorded in ``info["action_trace"]``: with refine="off" action 2 is replaced by *continue*."""
    return [0 if action == 2 else int(action) for action in actions]


def test_the_page_has_a_section_per_client():
    sections = re.findall(r"^## (.+)$", PAGE.read_text(encoding="utf-8"), flags=re.M)
    table = re.findall(r"^\| \[(.+?)\]", PAGE.read_text(encoding="utf-8"), flags=re.M)
    assert sections == table and len(table) == 11


def test_stable_baselines3_learns():
    page = ran("import PPO\n")
    model = page["model"]
    assert model.num_timesteps == 32
    assert len(model.ep_info_buffer) > 4 and {int(one["l"]) for one in model.ep_info_buffer} <= {1, 2, 3}
    assert model._n_updates == 2 and np.isfinite([one["r"] for one in model.ep_info_buffer]).all()


def test_maskable_ppo_takes_legal_actions_only():
    page = ran("import MaskablePPO")  # strict: an illegal action would have raised in learn()
    assert page["model"].num_timesteps == 32
    masks = page["get_action_masks"](page["env"])
    np.testing.assert_array_equal(masks, page["env"].env_method("action_masks"))
    assert not masks[:, 2].any()  # refine="off"
    assert masks[np.arange(2), page["actions"]].all()


def test_sbx_learns_from_flat_observations():
    pytest.importorskip("sbx")
    page = ran("import sbx")
    assert page["model"].num_timesteps == 32
    action, _ = page["model"].predict(page["env"].reset(seed=0)[0])
    assert page["env"].action_space.contains(np.int64(action))


@pytest.mark.parametrize("mode", ["next_step", "same_step"])
def test_cleanrls_loop_for_256_steps(mode):
    """128 steps of two lanes; the rows of resets are those that the page names, and an update changes the weights."""
    page = ran("def collect")
    storage, lanes = page["storage"], page["lanes"]
    if mode == "same_step":
        lanes = gym.make_vec(page["ID"], num_envs=2, **page["TINY"])
        rng = np.random.default_rng(0)
        storage = page["collect"](lanes, lambda _: rng.integers(0, 3, 2), 128)
        assert not storage["reset"].any() and storage["done"].sum() > 64
        return
    width = gym.spaces.flatdim(lanes.single_observation_space)
    assert storage["observation"].shape == (128, 2, width) and storage["action"].shape == (128, 2)
    reset = storage["reset"]
    np.testing.assert_array_equal(reset, storage["done"])
    assert 0.2 < reset.mean() < 0.5 and (storage["reward"][reset] == 0).all()
    assert not (reset[1:] & reset[:-1]).any()  # every episode has a decision
    net = torch.nn.Linear(width, 3)
    optimizer = torch.optim.Adam(net.parameters())
    keep = torch.from_numpy(~reset)
    chosen = torch.distributions.Categorical(logits=net(torch.from_numpy(storage["observation"])))
    loss = -(chosen.log_prob(torch.from_numpy(storage["action"])) * torch.from_numpy(storage["reward"]))[keep].mean()
    before = net.weight.detach().clone()
    loss.backward()
    optimizer.step()
    assert torch.isfinite(loss) and not torch.equal(before, net.weight)


def test_torchrl_makes_checks_and_collects():
    pytest.importorskip("torchrl")
    page = ran("GymEnv(ID")
    data = torch.cat(page["frames"])
    assert data.shape == (64,) and page["env"].batch_size == ()
    done = data["next", "done"].squeeze(-1)
    assert 64 / 3 - 1 <= done.sum() < 64 and torch.isfinite(data["next", "reward"]).all()
    goes_on = ~done[:-1]
    same = (data["correctness"][1:] == data["next", "correctness"][:-1]).all(-1)
    assert same[goes_on].all() and not same[~goes_on].any()  # the last observation is the old episode's
    nfe = data["next", "nfe"].reshape(-1)
    assert (nfe > 0).all() and data["next", "clip_score"].reshape(-1)[done].ne(0).all()
    actions = data["action"].float().argmax(-1)
    assert set(actions.tolist()) == {0, 1, 2}  # without masks an illegal one continues


def test_torchrl_reads_the_mask_in_the_observation():
    envs = pytest.importorskip("torchrl.envs")
    page = ran()
    masked = page["MaskInObservation"](gym.make(page["ID"], **page["TINY"], strict=True))
    env = envs.TransformedEnv(envs.GymWrapper(masked), envs.ActionMask())
    played = env.rollout(24, break_when_any_done=False)
    masks, actions = played["action_mask"].bool(), played["action"].bool()
    assert played.shape == (24,) and (masks | ~actions).all() and not masks[:, 2].any()


def test_torchrl_takes_a_vector_environment_in_mode_disabled():
    envs = pytest.importorskip("torchrl.envs")
    page = ran()
    lanes = {mode: gym.make_vec(page["ID"], num_envs=2, autoreset_mode=mode, **page["TINY"]) for mode in MODES}
    with pytest.raises(RuntimeError, match=r"expand_specs|auto-reset mode"):
        envs.GymWrapper(lanes["next_step"])
    with pytest.raises(RuntimeError, match="batch_dims"):  # indexes the texts of final_info
        envs.GymWrapper(lanes["same_step"]).rollout(8, break_when_any_done=False)
    played = envs.GymWrapper(lanes["disabled"]).rollout(8, break_when_any_done=False)
    done = played["next", "done"].squeeze(-1)
    assert played.shape == (2, 8) and done.sum() >= 4
    same = (played["correctness"][:, 1:] == played["next", "correctness"][:, :-1]).all(-1)
    torch.testing.assert_close(same, ~done[:, :-1])  # continues, or is reset


def test_tianshou_collects_six_episodes_from_two_processes():
    pytest.importorskip("tianshou")
    page = ran("SubprocVectorEnv")
    collected, buffer = page["collected"], page["buffer"]
    assert collected.n_collected_episodes == 6 and collected.n_collected_steps == collected.lens.sum()
    assert set(collected.lens.tolist()) <= {1, 2, 3} and np.isfinite(collected.returns).all()
    rows = buffer.sample_indices(0)
    batch = buffer[rows]
    trace, step = batch.info.action_trace, (batch.info.action_trace >= 0).sum(1)
    np.testing.assert_array_equal(trace[np.arange(len(rows)), step - 1], taken(batch.act))  # recorded as played
    np.testing.assert_array_equal(batch.info.has_image, batch.terminated)
    assert batch.terminated.sum() >= 6 and batch.info.image[batch.terminated].any((1, 2, 3)).all()


def test_rllib_records_the_decisions_that_were_played():
    """One iteration in each mode; in same_step, vector_entry_point loses the decisions that the page names."""
    pytest.importorskip("ray.rllib")
    ray = pytest.importorskip("ray")
    page = ran("PPOConfig")
    quiet = {"include_dashboard": False, "log_to_driver": False, "object_store_memory": 80_000_000}
    ray.init(num_cpus=1, ignore_reinit_error=True, **quiet)
    try:
        configs = {"sync": page["one_by_one"], "next_step": page["batched"]}
        configs["same_step"] = page["config"]("vector_entry_point", autoreset_mode="same_step")
        lost = {}
        for name, config in configs.items():
            ended = []

            def note(episode, ended=ended, **_):
                info = episode.get_infos(-1)
                trace = info.get("final_info", info)["action_trace"]
                ended.append((episode.t_started, taken(episode.get_actions()), trace[trace >= 0].tolist()))

            algorithm = config.callbacks(on_episode_end=note).build_algo()
            result = algorithm.train()
            algorithm.stop()
            assert result["env_runners"]["num_env_steps_sampled"] >= 32 and len(ended) >= 8
            lost[name] = [len(trace) - start - len(played) for start, played, trace in ended]
            for number, (start, played, trace) in zip(lost[name], ended, strict=True):
                assert trace[start + number :] == played
        assert set(lost["sync"]) == set(lost["next_step"]) == {0}
        assert set(lost["same_step"]) == {0, 1}  # 0: a lane's first episode, or one after a lost episode
    finally:
        ray.shutdown()


def test_skrl_steps_flat_observations():
    pytest.importorskip("skrl")
    page = ran("wrap_env")
    env = page["env"]
    twin = gym.make_vec(page["ID"], num_envs=2, **page["TINY"])
    twin.reset(seed=[slot.seed for slot in env.unwrapped.episodes.slots])
    seen, reward, terminated, *_ = twin.step(np.array([0, 1]))
    width = gym.spaces.flatdim(twin.single_observation_space)
    assert page["observation"].shape == (2, width) and page["terminated"].flatten().tolist() == [False, True]
    np.testing.assert_array_equal(page["terminated"].flatten(), terminated)
    np.testing.assert_allclose(page["reward"].flatten().numpy(), reward, atol=1e-3)
    own = {key: value[0] for key, value in seen.items()}
    np.testing.assert_allclose(
        page["observation"][0], gym.spaces.flatten(twin.single_observation_space, own), atol=1e-3
    )


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    pytest.importorskip("minari")
    pytest.importorskip("h5py")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    return ran("import minari")


def test_minari_returns_steps_and_infos(datasets):
    import minari

    stored = list(minari.load_dataset("emoji/random-v0").iterate_episodes())
    assert [episode.actions.tolist() for episode in stored] == [[0, 1], [1], [0, 1]]
    env = minari.load_dataset("emoji/random-v0").recover_environment()
    assert isinstance(env.unwrapped, AdDiffusionEnv)
    assert env.unwrapped.settings == EnvSettings.of(**{**env.spec.kwargs})
    for seed, episode in enumerate(stored):
        observation, info = env.reset(seed=seed)
        rows = [(observation, info)]
        for number, action in enumerate(episode.actions):
            observation, reward, terminated, _, info = env.step(action)
            assert episode.rewards[number] == pytest.approx(reward, abs=1e-6)
            assert episode.terminations[number] == terminated
            rows.append((observation, info))
        for number, (observation, info) in enumerate(rows):
            for key, value in observation.items():
                np.testing.assert_array_equal(episode.observations[key][number], value)
            for key in ("image", "action_trace", "nfe", "has_image", "clip_score", "seed"):
                np.testing.assert_array_equal(episode.infos[key][number], info[key], err_msg=key)
            prompt = episode.infos["prompt"][number]
            assert (prompt.decode() if isinstance(prompt, bytes) else str(prompt)) == info["prompt"]


def test_d3rlpy_learns_from_minaris_episodes(datasets):
    pytest.importorskip("d3rlpy")
    code = next(code for code in CODE if "import d3rlpy" in code)
    exec(compile(code, str(PAGE), "exec"), datasets)
    assert datasets["data"].transition_count == 5 and datasets["data"].size() == 3
    assert datasets["episodes"][0].observations.shape == (2, gym.spaces.flatdim(datasets["spaces"]))
    assert len(datasets["history"]) == 2 and np.isfinite(datasets["history"][-1][1]["loss"])
