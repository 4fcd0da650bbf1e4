#!/usr/bin/env bash
# diffusers 0.42.1: in one call of Kandinsky3Pipeline with two prompts, the first picture changes with the LENGTH of the
# second prompt. Prompts are cut to the longest of the call, and the UNet pools the text with a mean over all positions
# (Kandinsky3AttentionPooling: context.mean(dim=1)) that counts the padding, attention mask or not. With a neighbour of
# equal length the picture is that of the prompt alone.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.14.1 diffusers==0.42.1 transformers==5.24.0 accelerate==1.15.0 numpy pillow
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PYTHON'
import string

import diffusers
import torch
from diffusers import DDIMScheduler, Kandinsky3Pipeline, Kandinsky3UNet, VQModel
from transformers import T5Config, T5EncoderModel, T5TokenizerFast

torch.set_num_threads(1)
torch.manual_seed(0)
print("torch", torch.__version__, "diffusers", diffusers.__version__)
pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -3.0)]
tokenizer = T5TokenizerFast(vocab=pieces + [(letter, -5.0) for letter in string.ascii_lowercase], extra_ids=0)
text = dict(d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
pipe = Kandinsky3Pipeline(
    tokenizer=tokenizer,
    text_encoder=T5EncoderModel(T5Config(vocab_size=len(tokenizer), **text)).eval(),
    unet=Kandinsky3UNet(
        time_embedding_dim=16, groups=2, attention_head_dim=4, layers_per_block=3, block_out_channels=(16, 16),
        cross_attention_dim=8, encoder_hid_dim=16,
    ).eval(),
    scheduler=DDIMScheduler(),
    movq=VQModel(
        block_out_channels=(32, 32), down_block_types=("DownEncoderBlock2D",) * 2, latent_channels=4,
        up_block_types=("UpDecoderBlock2D",) * 2, num_vq_embeddings=12, norm_num_groups=8, norm_type="spatial",
    ).eval(),
)
pipe.set_progress_bar_config(disable=True)
for weight in pipe.unet.parameters():
    if not weight.any():  # the conditional norms of a new UNet are zero
        torch.nn.init.normal_(weight, std=0.1)
noise = torch.randn(2, 4, 8, 8)


def latents(*prompts):
    with torch.no_grad():
        return pipe(
            list(prompts), latents=noise[: len(prompts)].clone(), num_inference_steps=2, output_type="latent",
            height=64, width=64, guidance_scale=3.0,
        ).images[0]


alone = latents("a red cup")
same, longer = latents("a red cup", "a big cat"), latents("a red cup", "a big cat on a sofa left of the dog")
scale = float(alone.abs().max())
equal, changed = float((same - alone).abs().max()) / scale, float((longer - alone).abs().max()) / scale
print(f"beside a prompt of equal length: {equal:.1e}; beside a longer one: {changed:.1e} (relative to the largest latent)")
assert equal < 1e-3 and changed > 1e-2, "the behaviour has changed"
PYTHON
