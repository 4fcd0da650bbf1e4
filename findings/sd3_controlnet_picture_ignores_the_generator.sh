#!/usr/bin/env bash
# diffusers 0.42.1: StableDiffusion3ControlNetPipeline encodes the control image with a sample of the VAE's distribution
# that comes from torch's global generator. generator= and latents= do not fix the picture: two calls with equal
# arguments draw two pictures, and each call moves the caller's global random state. Flux's and Qwen-Image's ControlNet
# pipelines take the sample from generator=. The same holds by source for SD 3's ControlNet inpainting, Hunyuan-DiT's
# ControlNet and CogView 4's control pipeline (not run here).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.14.1 diffusers==0.42.1 transformers==5.24.0 accelerate==1.15.0 numpy pillow
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PYTHON'
import diffusers
import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3ControlNetModel,
    SD3Transformer2DModel,
    StableDiffusion3ControlNetPipeline,
)

torch.set_num_threads(1)
print("torch", torch.__version__, "diffusers", diffusers.__version__)
sizes = dict(sample_size=8, num_layers=2, attention_head_dim=8, num_attention_heads=2, joint_attention_dim=16)
sizes |= dict(caption_projection_dim=16, pooled_projection_dim=16, pos_embed_max_size=8)
torch.manual_seed(0)
controlnet = SD3ControlNetModel(**sizes)
for weight in controlnet.parameters():
    if not weight.any():  # a new ControlNet's output layers are zero
        torch.nn.init.normal_(weight, std=0.1)
pipe = StableDiffusion3ControlNetPipeline(
    transformer=SD3Transformer2DModel(**sizes),
    scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    vae=AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, latent_channels=16,
        up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4, shift_factor=0.06,
    ),
    text_encoder=None, tokenizer=None, text_encoder_2=None, tokenizer_2=None, text_encoder_3=None, tokenizer_3=None,
    controlnet=controlnet,
)
pipe.set_progress_bar_config(disable=True)
text = dict(prompt_embeds=torch.randn(1, 4, 16), negative_prompt_embeds=torch.randn(1, 4, 16))
text |= dict(pooled_prompt_embeds=torch.randn(1, 16), negative_pooled_prompt_embeds=torch.randn(1, 16))
image, latents = torch.rand(1, 3, 16, 16), torch.randn(1, 16, 8, 8)


def draw():
    return pipe(
        **text, control_image=image, latents=latents, generator=torch.Generator().manual_seed(7),
        num_inference_steps=2, output_type="pt", height=16, width=16,
    ).images


state = torch.get_rng_state()
first, second = draw(), draw()
moved = not torch.equal(state, torch.get_rng_state())
torch.set_rng_state(state)
again = draw()
difference = float((first - second).abs().max())
print(f"equal arguments, equal generator: pictures differ by {difference:.1e}; global random state moved: {moved}")
print(f"the same with the global random state set back: {float((first - again).abs().max()):.1e}")
assert difference > 1e-3 and moved and torch.equal(first, again), "the behaviour has changed"
PYTHON
