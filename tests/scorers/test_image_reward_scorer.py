"""ImageReward: against its arithmetic written out from the official names, and against the package where it imports."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from references import TEXTS, as_tensor, every_image
from scorer_models import MED_CONFIG

from addiffusion_env.errors import MissingPackageError, WeightsError
from addiffusion_env.prompts import Prompt
from addiffusion_env.scorers.image_reward import ImageRewardPackageScorer, ImageRewardScorer, import_package

PROMPTS = [Prompt.of(text) for text in ("a dog", "c", "the quick brown fox")]


def load(folder, bert_folder, **options):
    return ImageRewardScorer.from_pretrained(folder, tokenizer=bert_folder, **options)


class Written:
    """ImageReward written out from its weights' own names (vit.py, med.py, ImageReward.py of image-reward 1.5)."""

    def __init__(self, state):
        self.state = state

    def linear(self, x, name):
        return F.linear(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"])

    def norm(self, x, name, eps):
        return F.layer_norm(x, x.shape[-1:], self.state[f"{name}.weight"], self.state[f"{name}.bias"], eps)

    @staticmethod
    def attend(q, k, v, heads, mask=0.0):
        q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
        weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + mask).softmax(-1)
        return (weights @ v).transpose(1, 2).flatten(2)

    def see(self, pixels, depth=2, heads=2, root="blip.visual_encoder"):
        weight, bias = (self.state[f"{root}.patch_embed.proj.{kind}"] for kind in ("weight", "bias"))
        x = F.conv2d(pixels, weight, bias, stride=16).flatten(2).transpose(1, 2)
        x = torch.cat([self.state[f"{root}.cls_token"].expand(len(x), -1, -1), x], 1) + self.state[f"{root}.pos_embed"]
        for i in range(depth):
            block = f"{root}.blocks.{i}"
            qkv = self.linear(self.norm(x, f"{block}.norm1", 1e-6), f"{block}.attn.qkv").chunk(3, -1)
            x = x + self.linear(self.attend(*qkv, heads), f"{block}.attn.proj")
            hidden = F.gelu(self.linear(self.norm(x, f"{block}.norm2", 1e-6), f"{block}.mlp.fc1"))
            x = x + self.linear(hidden, f"{block}.mlp.fc2")
        return self.norm(x, f"{root}.norm", 1e-6)

    def sublayer(self, x, seen, name, mask=0.0):
        q = self.linear(x, f"{name}.self.query")
        k, v = (self.linear(seen, f"{name}.self.{part}") for part in ("key", "value"))
        out = self.linear(self.attend(q, k, v, 2, mask), f"{name}.output.dense")
        return self.norm(x + out, f"{name}.output.LayerNorm", 1e-12)

    def score(self, pixels, ids, mask, root="blip.text_encoder"):
        seen = self.see(pixels)
        x = self.state[f"{root}.embeddings.word_embeddings.weight"][ids]
        x = x + self.state[f"{root}.embeddings.position_embeddings.weight"][: ids.shape[1]]
        x = self.norm(x, f"{root}.embeddings.LayerNorm", 1e-12)
        hide = (1.0 - mask[:, None, None].float()) * -1e9
        for i in range(2):
            layer = f"{root}.encoder.layer.{i}"
            x = self.sublayer(self.sublayer(x, x, f"{layer}.attention", hide), seen, f"{layer}.crossattention")
            hidden = F.gelu(self.linear(x, f"{layer}.intermediate.dense"))
            x = self.norm(x + self.linear(hidden, f"{layer}.output.dense"), f"{layer}.output.LayerNorm", 1e-12)
        reward = x[:, 0]
        for position in (0, 2, 4, 6, 7):
            reward = self.linear(reward, f"mlp.layers.{position}")
        return (reward[:, 0] - 0.16717362830052426) / 1.0333394966054072


def test_equals_the_published_arithmetic(image_reward_folder, image_reward_state, bert_folder, make_images):
    from transformers import BertTokenizer

    own = BertTokenizer.from_pretrained(bert_folder)
    text = own(
        [prompt.text for prompt in PROMPTS], padding="max_length", truncation=True, max_length=35, return_tensors="pt"
    )
    images = make_images(3, 32)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    wanted = Written(image_reward_state).score(((images + 1) / 2 - mean) / std, text.input_ids, text.attention_mask)
    got = load(image_reward_folder, bert_folder).score(images, PROMPTS)
    assert wanted.std() > 0.05, "scores that never differ would prove nothing"
    assert torch.allclose(got, wanted, atol=1e-4)


def test_images_and_prompts_both_matter(image_reward_folder, bert_folder, make_images):
    scorer = load(image_reward_folder, bert_folder)
    image, prompt = make_images(1, 32), PROMPTS[:1]
    base = scorer.score(image, prompt)
    assert (scorer.score(make_images(1, 32, seed=5), prompt) - base).abs() > 1e-2
    assert (scorer.score(image, PROMPTS[2:]) - base).abs() > 1e-2


def test_a_score_depends_on_neither_neighbours_nor_chunks(image_reward_folder, bert_folder, make_images):
    scorer = load(image_reward_folder, bert_folder)
    images = make_images(3, 32)
    whole = scorer.score(images, PROMPTS)
    scorer.chunk = 1
    assert torch.allclose(scorer.score(images, PROMPTS), whole, atol=1e-4)


def test_half_precision_stays_inside(image_reward_folder, bert_folder, make_images):
    whole, half = (load(image_reward_folder, bert_folder, dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    scores, wanted = half.score(make_images(3, 32), PROMPTS), whole.score(make_images(3, 32), PROMPTS)
    assert scores.dtype == torch.float32
    assert float((scores - wanted).abs().max()) < 0.1 * float(wanted.std())


def test_checkpoint_and_config_may_lie_apart(image_reward_folder, bert_folder, tmp_path, make_images):
    (tmp_path / "config.json").write_text(json.dumps(MED_CONFIG))
    (tmp_path / "weights.pt").write_bytes((image_reward_folder / "ImageReward.pt").read_bytes())
    apart = load(tmp_path / "weights.pt", bert_folder, med_config=tmp_path / "config.json")
    together = load(image_reward_folder, bert_folder)
    assert torch.equal(apart.score(make_images(1, 32), PROMPTS[:1]), together.score(make_images(1, 32), PROMPTS[:1]))
    with pytest.raises(WeightsError, match=r"med_config\.json"):
        load(tmp_path / "weights.pt", bert_folder)


def without(name):
    return lambda state: {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("blip.visual_encoder.blocks.1.attn.qkv.bias"), r"missing: encoder\.layers\.1\.self_attn\.qkv\.bias"),
        (without("blip.text_encoder.encoder.layer.0.output.dense.weight"), r"missing: encoder\.layer\.0\.output"),
        (without("mlp.layers.7.bias"), r"does not fit ModuleDict: missing: 7\.bias"),
        (lambda state: {**state, "blip.text_encoder.pooler.dense.bias": torch.zeros(3)}, "unexpected: pooler"),
        (
            lambda state: {**state, "mlp.layers.0.weight": torch.zeros(16, 768)},
            r"0\.weight \(16, 768\) instead of \(16, 32\)",
        ),
        (lambda state: {"visual.proj": torch.zeros(3)}, "not ImageReward"),
        (lambda state: {key: value for key, value in state.items() if "crossattention" not in key}, "crossattention"),
    ],
)
def test_a_wrong_checkpoint_names_what_is_wrong(image_reward_state, bert_folder, tmp_path, change, message):
    torch.save(change(image_reward_state), tmp_path / "ImageReward.pt")
    (tmp_path / "med_config.json").write_text(json.dumps(MED_CONFIG))
    with pytest.raises(WeightsError, match=message):
        load(tmp_path, bert_folder)


def test_a_config_of_another_kind_is_refused(image_reward_folder, bert_folder, tmp_path):
    (tmp_path / "med_config.json").write_text(json.dumps({"hidden_size": 32}))
    with pytest.raises(WeightsError, match=r"med_config\.json lacks vocab_size"):
        load(image_reward_folder, bert_folder, med_config=tmp_path / "med_config.json")


def package():
    try:
        return import_package()
    except MissingPackageError as error:
        pytest.skip(str(error).splitlines()[0])


def test_without_the_package_the_reason_and_the_remedy_are_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ImageReward", None)
    with pytest.raises(MissingPackageError, match="ModuleNotFoundError") as caught:
        ImageRewardPackageScorer.from_pretrained()
    assert "use the scorer 'image_reward'" in caught.value.remedy


@pytest.mark.filterwarnings("ignore:a scorer reads")
def test_equals_the_package(monkeypatch, tmp_path, bert_folder):
    """The package's own classes at a small size: a 2-layer vision transformer of 32 pixels, one BERT layer of 768."""
    package()
    from ImageReward.ImageReward import ImageReward, _transform
    from ImageReward.models.BLIP import blip_pretrain, vit
    from transformers import BertTokenizer

    small = {"img_size": 32, "patch_size": 16, "embed_dim": 128, "depth": 2, "num_heads": 2}
    monkeypatch.setattr(blip_pretrain, "create_vit", lambda *args: (vit.VisionTransformer(**small), 128))
    monkeypatch.setattr(blip_pretrain, "init_tokenizer", lambda: BertTokenizer.from_pretrained(bert_folder))
    config = {**MED_CONFIG, "hidden_size": 768, "num_attention_heads": 12, "num_hidden_layers": 1}
    config |= {"attention_probs_dropout_prob": 0.1, "hidden_dropout_prob": 0.1, "add_cross_attention": True}
    (tmp_path / "med_config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    model = ImageReward(med_config=str(tmp_path / "med_config.json")).eval()
    model.preprocess = _transform(32)
    for layer in model.mlp.layers:
        if isinstance(layer, torch.nn.Linear):
            torch.nn.init.kaiming_normal_(layer.weight)  # the published initialisation gives constant scores
    torch.save(model.state_dict(), tmp_path / "ImageReward.pt")
    reference, scorer = ImageRewardPackageScorer(model), load(tmp_path, bert_folder)
    pairs = [(as_tensor(image), [TEXTS[i % len(TEXTS)]]) for i, image in enumerate(every_image())]
    wanted, got = (torch.cat([each.score(*pair) for pair in pairs]) for each in (reference, scorer))
    assert wanted.std() > 1e-3
    assert torch.allclose(got, wanted, atol=1e-5), float((got - wanted).abs().max())
