"""Images and texts on which every scorer is held against its reference implementation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

SIZES = [
    (64, 64),
    (65, 97),
    (97, 65),
    (128, 128),
    (256, 359),
    (300, 421),
    (359, 256),
    (261, 576),
    (500, 701),
    (1024, 768),
]
"""Heights and widths: square and not, odd, with odd margins after resizing; 261 x 576 rounds in two ways."""
LARGE = [(224, 224), (480, 640), (512, 512), (768, 512), (1023, 1024), (1024, 1024)]

TEXTS = [
    "a photo of a dog",
    "A photo of a DOG, two cats - THREE Birds!",
    "the dog's bear",
    "a cat\u2019s toy and a \u201chello\u201d sign",
    "fish &amp; chips &lt;b&gt; &#39;quoted&#39;",
    "\ufb01ne \ufb02ower in the o\ufb03ce",
    "\uff21\uff22\uff23 \uff11\uff12\uff13 full\u3000width",
    "caf\u00e9 na\u00efve CAF\u00c9 \u65e5\u672c\u8a9e \U0001f600",
    "  spaces \t and\nlines  ",
    "snake_case {braces} <|endoftext|> [SEP] </s>",
    "",
    "many words " * 60,
]


def noise(height: int, width: int, seed: int = 0) -> Image.Image:
    """An image of independent bytes: resizing overshoots and rounds nowhere more."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def smooth(height: int, width: int, seed: int = 0) -> Image.Image:
    """An image without noise, as a finished one."""
    return noise(5, 4, seed).resize((width, height), Image.Resampling.BICUBIC)


def every_image(sizes=tuple(SIZES)) -> list[Image.Image]:
    """Noise of every size, one smooth and one grey image."""
    grey = noise(90, 61, 7).convert("L").convert("RGB")
    return [*(noise(*size, seed) for seed, size in enumerate(sizes)), smooth(333, 250), grey]


def as_tensor(image: Image.Image) -> torch.Tensor:
    """(1, 3, H, W) in [-1, 1], as scorers read it."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 127.5 - 1


def randomise(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Random weights large enough that every pixel and token matters; in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if weight.ndim > 1:
                weight.copy_(torch.randn(weight.shape, generator=generator) * (1.5 / weight[0].numel()) ** 0.5)
            elif not name.endswith("weight"):
                weight.add_(torch.randn(weight.shape, generator=generator) * 0.1)
    return module.eval()


def save_sentencepiece(folder: Path) -> int:
    """Saves a small cased tokenizer in the layout of SigLIP's (T5: unigrams, one end token, also for padding).

    Returns:
        The size of its vocabulary.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = [*map(chr, range(33, 127)), "\u00e9", "\u00c9", "\u00ef", "\u2019", "\u201c", "\u201d"]
    pieces = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", -20.0),
        ("\u2581", -2.0),
        *((letter, -3.0) for letter in letters),
    ]
    tokenizer = Tokenizer(models.Unigram([*pieces, ("\u2581dog", -1.0), ("\u2581DOG", -1.0)], unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="</s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    return tokenizer.get_vocab_size()


def save_clip_folder(folder: Path, config: dict, preprocess: dict) -> Path:
    """Saves an open_clip model with random weights in open_clip's own local-dir format."""
    import open_clip
    from safetensors.torch import save_file

    folder.mkdir(exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False, pretrained_text=False)
    save_file(randomise(model).state_dict(), folder / "open_clip_model.safetensors")
    return folder
