#!/usr/bin/env bash
# diffusers 0.42.1: PRXPipeline with its own default guidance (4.0) draws one image, and fails for two: with guidance its
# loop gives the transformer a time of always 2 entries (t.view(1).repeat(2)) beside 2 rows of latents an image. So
# num_images_per_prompt=2 and lists of prompts, which its signature and documentation offer, raise a RuntimeError about
# tensor sizes; without guidance the single time broadcasts, and two images are drawn. PRXPixelPipeline has the same.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.14.1 diffusers==0.42.1 transformers==5.24.0 accelerate==1.15.0 numpy pillow
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PYTHON'
import diffusers
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, PRXPipeline, PRXTransformer2DModel

torch.set_num_threads(1)
torch.manual_seed(0)
print("torch", torch.__version__, "diffusers", diffusers.__version__)
pipe = PRXPipeline(
    transformer=PRXTransformer2DModel(
        in_channels=4, context_in_dim=16, hidden_size=32, num_heads=2, depth=1, axes_dim=[8, 8]
    ).eval(),
    scheduler=FlowMatchEulerDiscreteScheduler(),
    text_encoder=None,  # prompts are given as embeddings
    tokenizer=None,
    vae=AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, sample_size=16).eval(),
    default_sample_size=16,
)
pipe.set_progress_bar_config(disable=True)
text, empty = torch.randn(1, 6, 16), torch.randn(1, 6, 16)
mask = torch.ones(1, 6, dtype=torch.bool)


def draw(count, **guidance):
    with torch.no_grad():
        return pipe(
            prompt_embeds=text.repeat(count, 1, 1), negative_prompt_embeds=empty.repeat(count, 1, 1),
            prompt_attention_mask=mask.repeat(count, 1), negative_prompt_attention_mask=mask.repeat(count, 1),
            num_inference_steps=2, height=16, width=16, use_resolution_binning=False, output_type="latent", **guidance,
        ).images


print("one image, default guidance:", tuple(draw(1).shape))
print("two images, guidance_scale=1:", tuple(draw(2, guidance_scale=1.0).shape))
try:
    draw(2)
except RuntimeError as error:
    print("two images, default guidance: RuntimeError:", error)
else:
    raise SystemExit("the behaviour has changed: two images are drawn with guidance")
PYTHON
