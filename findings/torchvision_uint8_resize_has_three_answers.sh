#!/usr/bin/env bash
# Resizing one 8-bit tensor with torchvision has three answers. transforms.functional (v1) goes over floats and rounds
# once. transforms.v2.functional, which transformers' default image processors call, keeps bytes (two passes, rounded
# after each, nearly Pillow's), but its bilinear does so only where the processor has AVX2, else it goes over floats too.
# On noise that is enlarged, v1 and v2 are 20 levels of 255 apart with bicubic, antialiased in both.
# Exits 0 while that is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 torchvision==0.29.1 numpy==2.3.5 pillow==11.3.0
cat > "$folder/resize.py" <<'PY'
import sys

import numpy as np
import torch
import torchvision.transforms.functional as v1
import torchvision.transforms.v2.functional as v2
from PIL import Image
from torchvision.transforms import InterpolationMode

picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
tensor = torch.from_numpy(picture).permute(2, 0, 1).contiguous()
found = {}
for mode in ("bilinear", "bicubic"):
    resized = Image.fromarray(picture).resize((224, 224), getattr(Image.Resampling, mode.upper()))
    pillow = torch.from_numpy(np.array(resized)).permute(2, 0, 1).int()
    for name, module in (("v1", v1), ("v2", v2)):
        values = module.resize(tensor, [224, 224], InterpolationMode(mode), antialias=True).int()
        off = (values - pillow).abs()
        share = 100 * float((off > 0).float().mean())
        print(f"  {mode:8} {name}: {share:5.2f} % of values are not Pillow's, by at most {int(off.max())} levels")
        found[mode, name] = values
torch.save(found, sys.argv[1])
PY
"$folder/venv/bin/python" - <<'PY'
import torch, torchvision, PIL
print("torch", torch.__version__, "torchvision", torchvision.__version__, "Pillow", PIL.__version__)
print("this processor:", torch.backends.cpu.get_cpu_capability())
PY
for capability in avx2 default; do
  echo "ATEN_CPU_CAPABILITY=$capability"
  ATEN_CPU_CAPABILITY=$capability "$folder/venv/bin/python" "$folder/resize.py" "$folder/$capability.pt"
done
"$folder/venv/bin/python" - "$folder" <<'PY'
import sys

import torch

avx2, default = (torch.load(f"{sys.argv[1]}/{name}.pt") for name in ("avx2", "default"))
share = float((avx2["bilinear", "v2"] != default["bilinear", "v2"]).float().mean())
apart = int((avx2["bicubic", "v1"] - avx2["bicubic", "v2"]).abs().max())
print(f"v2 bilinear: {100 * share:.1f} % of values differ between the instruction sets; bicubic: v1 and v2 are {apart} levels apart")
assert share > 0.1 and apart > 10, "torchvision has changed"
PY
