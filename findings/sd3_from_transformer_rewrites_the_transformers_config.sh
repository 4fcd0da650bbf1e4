#!/usr/bin/env bash
# diffusers 0.42.1: SD3ControlNetModel.from_transformer(transformer) writes into transformer.config: the item
# ["num_layers"] becomes its own argument's default (12), the attribute .num_layers stays. The transformer works on, but
# what save_pretrained then writes can't be loaded: its config.json describes another network. (FrozenDict, the class of
# .config, is meant to refuse such writing.) FluxControlNetModel.from_transformer leaves the original alone.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.14.1 diffusers==0.42.1 transformers==5.24.0 accelerate==1.15.0 numpy
FOLDER="$folder" HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PYTHON'
import os

import diffusers
import torch
from diffusers import FluxControlNetModel, FluxTransformer2DModel, SD3ControlNetModel, SD3Transformer2DModel

torch.set_num_threads(1)
print("torch", torch.__version__, "diffusers", diffusers.__version__)
sizes = dict(sample_size=8, num_layers=2, attention_head_dim=8, num_attention_heads=2, joint_attention_dim=16)
sizes |= dict(caption_projection_dim=16, pooled_projection_dim=16, pos_embed_max_size=8)
transformer = SD3Transformer2DModel(**sizes)
transformer.save_pretrained(os.environ["FOLDER"] + "/before")
SD3Transformer2DModel.from_pretrained(os.environ["FOLDER"] + "/before")
print("before: num_layers", transformer.config.num_layers, "- saved and loaded")

SD3ControlNetModel.from_transformer(transformer, load_weights_from_transformer=False)
item, attribute = transformer.config["num_layers"], transformer.config.num_layers
print(f"after: config['num_layers'] {item}, config.num_layers {attribute}, {len(transformer.transformer_blocks)} blocks")
transformer.save_pretrained(os.environ["FOLDER"] + "/after")
try:
    SD3Transformer2DModel.from_pretrained(os.environ["FOLDER"] + "/after")
    loaded = True
except Exception as error:
    loaded = False
    print("loading what was saved afterwards:", type(error).__name__, str(error)[:110])

flux = FluxTransformer2DModel(
    in_channels=4, num_layers=2, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
    joint_attention_dim=16, pooled_projection_dim=16, axes_dims_rope=(4, 4, 8),
)
FluxControlNetModel.from_transformer(
    flux, num_layers=1, num_single_layers=0, attention_head_dim=16, num_attention_heads=2,
    load_weights_from_transformer=False,
)
print("Flux: config['num_layers']", flux.config["num_layers"], "of", len(flux.transformer_blocks), "blocks")
assert (item, attribute) == (12, 2) and not loaded and flux.config["num_layers"] == 2, "the behaviour has changed"
PYTHON
