"""Tokenizers, text encoders and autoencoders shared by several tiny pipelines; nothing is downloaded."""

from __future__ import annotations

import inspect
import json
import string
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import transformers
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing

SHORT_WORDS = ("a", "photo", "of", "red", "cup", "dog", "left", "and", "the", "cat", "on", "sofa")
WORDS = (
    *SHORT_WORDS,
    *("system", "user", "assistant", "image", "prompt", "describe", "by", "detailing", "color", "shape", "size"),
    *("texture", "quantity", "text", "spatial", "relationships", "objects", "background", "you", "are", "an", "that"),
    *("to", "in", "with", "for", "is", "it", "as", "generate", "designed", "detailed", "descriptions", "description"),
    *("superior", "degree", "alignment", "based", "on", "textual", "prompts", "or", "from", "following", "think"),
)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}{{ part.text }}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHAT_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")


SD_NOISE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


SIZES: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "num_single_layers": 1,
    "num_refiner_layers": 1,
    "n_refiner_layers": 1,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "n_heads": 2,
    "num_kv_heads": 1,
    "num_key_value_heads": 1,
    "dim": 32,
    "hidden_size": 32,
    "intermediate_size": 32,
    "multiple_of": 16,
    "cross_attention_dim": 16,
    "joint_attention_dim": 32,
    "pooled_projection_dim": 32,
    "caption_projection_dim": 16,
    "cap_feat_dim": 16,
    "text_embed_dim": 32,
    "time_embed_dim": 8,
    "condition_dim": 4,
    "pos_embed_max_size": 8,
    "axes_dims": (4, 4, 8),
    "axes_dim_rope": (4, 4, 8),
    "axes_dims_rope": (4, 4, 8),
    "rope_axes_dim": (4, 4, 8),
}
"""Default sizes of denoisers, by the names of their parameters in diffusers."""

FLUX_VAE: dict[str, Any] = {"scaling_factor": 0.3611, "shift_factor": 0.1159}
"""Numbers of the autoencoder of Flux.1, which many others use."""


def network(kind: Any, **changes: Any) -> Any:
    """A network of diffusers with :data:`SIZES`, as far as its class has these parameters, and ``changes``."""
    names = inspect.signature(kind.__init__).parameters
    return kind(**{name: value for name, value in SIZES.items() if name in names} | changes)


def vocabulary(letters: list[str], specials: tuple[str, ...]) -> dict[str, Any]:
    """Vocabulary and merges of a byte-pair encoding in which each of ``WORDS`` is one token, capitalised or not."""
    tokens, merges = [*specials, *letters], []
    for word in dict.fromkeys(form for plain in WORDS for form in (plain, plain.capitalize())):
        for end in range(1, len(word)):
            if (pair := (word[:end], word[end])) not in merges:
                merges.append(pair)
                tokens.append(word[: end + 1])
    return {"vocab": {token: index for index, token in enumerate(dict.fromkeys(tokens))}, "merges": merges}


def begin(tokenizer: Any, *tokens: str) -> Any:
    """Configures a tokenizer to prepend ``tokens`` to each text, and returns it."""
    if tokens:
        ids = [(token, tokenizer.convert_tokens_to_ids(token)) for token in tokens]
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing([*tokens, "$A"], special_tokens=ids)
    return tokenizer


def clip_tokenizer() -> Any:
    """A CLIP tokenizer of letters, window 77."""
    letters = [*string.ascii_lowercase, *string.digits, *string.punctuation]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:
        vocabulary_file, merges_file = Path(folder, "vocab.json"), Path(folder, "merges.txt")
        vocabulary_file.write_text(json.dumps({token: at for at, token in enumerate(tokens)}), encoding="utf-8")
        merges_file.write_text("#version: 0.2\n", encoding="utf-8")
        return transformers.CLIPTokenizer(str(vocabulary_file), str(merges_file), model_max_length=77)


def t5_tokenizer() -> Any:
    """A T5 tokenizer of a few words and all letters."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -3.0)]
    pieces += [(f"▁{word}", -1.0) for word in SHORT_WORDS] + [(letter, -5.0) for letter in string.ascii_lowercase]
    return transformers.T5TokenizerFast(vocab=pieces, extra_ids=0)  # type: ignore[attr-defined]


def clip_text_model(tokenizer: Any, width: int = 16, projection: bool = False) -> Any:
    """A two-layer CLIP text model."""
    config = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return (transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel)(config)


def qwen_tokenizer(
    *specials: str, starts_with: tuple[str, ...] = (), tokenizer_class: Any = None, **settings: Any
) -> Any:
    """A byte-level tokenizer with a chat template; ``starts_with`` are ``specials`` that it prepends to each text."""
    tokenizer = (tokenizer_class or transformers.Qwen2Tokenizer)(
        **vocabulary(sorted(ByteLevel.alphabet()), (*CHAT_TOKENS, *specials)),
        extra_special_tokens=[*CHAT_TOKENS[1:3], *specials],
        **settings,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return begin(tokenizer, *starts_with)


def gemma_tokenizer() -> Any:
    """A tokenizer like Gemma's: spaces are characters, and each text begins with a special token."""
    specials = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
    letters = [*string.ascii_letters, *string.digits, *string.punctuation, "▁", "\n"]
    return begin(transformers.GemmaTokenizer(**vocabulary(letters, specials)), "<bos>")


def bert_tokenizer() -> Any:
    """A BERT tokenizer of ``WORDS`` and letters."""
    letters = [*string.ascii_lowercase, *string.digits, *string.punctuation]
    tokens = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *letters, *(f"##{letter}" for letter in letters))
    return transformers.BertTokenizer({token: index for index, token in enumerate(dict.fromkeys(tokens))})


def text(encoder: Callable[..., Any], tokenizer: Any, number: str = "", **settings: Any) -> dict[str, Any]:
    """A tokenizer and the text encoder that is made for it, as components; ``number`` ends their names."""
    return {f"tokenizer{number}": tokenizer, f"text_encoder{number}": encoder(tokenizer, **settings)}


def clip(number: str = "", **settings: Any) -> dict[str, Any]:
    """A CLIP tokenizer and its text encoder, as components; ``number`` ends their names."""
    return text(clip_text_model, clip_tokenizer(), number, **settings)


def bert(tokenizer: Any, width: int = 16) -> Any:
    """A BERT with two layers."""
    sizes: dict[str, Any] = {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    return transformers.BertModel(transformers.BertConfig(vocab_size=len(tokenizer), initializer_range=0.3, **sizes))


def decoder(config: Any, tokenizer: Any, width: int = 16, layers: int = 3, **settings: Any) -> Any:
    """A configuration of a small decoder-only language model; ``config`` is its class."""
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": layers, "head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "initializer_range": 0.3}
    ends = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    return config(vocab_size=len(tokenizer), **{**sizes, **heads, **ends, **settings})


def language_model(kind: str, tokenizer: Any, width: int = 16, **settings: Any) -> Any:
    """A language model with three layers; ``kind`` is its class in transformers."""
    config = getattr(transformers, kind.removesuffix("ForCausalLM").removesuffix("Model") + "Config")
    return getattr(transformers, kind)(decoder(config, tokenizer, width, **settings))


qwen3 = partial(language_model, "Qwen3ForCausalLM")
gemma = partial(language_model, "GemmaModel")
gemma2 = partial(language_model, "Gemma2Model", query_pre_attn_scalar=8)
glm = partial(language_model, "GlmModel")


def mistral3(tokenizer: Any, width: int = 16) -> Any:
    """A Mistral 3 with three layers and a small vision tower."""
    text = {**decoder(dict, tokenizer, width), "model_type": "mistral"}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return transformers.Mistral3ForConditionalGeneration(
        transformers.Mistral3Config(text_config=text, vision_config={**vision, "head_dim": 8, "model_type": "pixtral"})
    )


def qwen25_vl(tokenizer: Any, width: int = 16) -> Any:
    """A Qwen 2.5 VL with three layers and a small vision tower."""
    text = decoder(dict, tokenizer, width, rope_parameters={"rope_type": "default", "mrope_section": [1, 1, 2]})
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": width}
    return transformers.Qwen2_5_VLForConditionalGeneration(
        transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    )


def qwen3_vl(tokenizer: Any, width: int = 16, layers: int = 3) -> Any:
    """A Qwen 3 VL with three layers and a small vision tower."""
    rope = {"rope_type": "default", "mrope_section": [2, 1, 1]}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": width}
    return transformers.Qwen3VLForConditionalGeneration(
        transformers.Qwen3VLConfig(
            text_config=decoder(dict, tokenizer, width, layers, rope_parameters=rope),
            vision_config={**vision, "deepstack_visual_indexes": [0], "num_position_embeddings": 16},
        )
    )


def qwen3_vl_processor() -> Any:
    """The processor of Qwen 3 VL around ``qwen_tokenizer``."""
    tokenizer = qwen_tokenizer("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    return transformers.Qwen3VLProcessor(
        transformers.Qwen2VLImageProcessor(),
        tokenizer,
        transformers.Qwen3VLVideoProcessor(),
        chat_template=CHAT_TEMPLATE,
    )


def qwen2_vl_processor(tokenizer: Any) -> Any:
    """The processor of Qwen 2.5 VL around a tokenizer."""
    images, videos = transformers.Qwen2VLImageProcessor(), transformers.Qwen2VLVideoProcessor()
    return transformers.Qwen2VLProcessor(images, tokenizer, videos, chat_template=CHAT_TEMPLATE)


def clip_vision(layers: int = 1) -> dict[str, Any]:
    """A CLIP image encoder for 16 pixels and its image processor."""
    sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    config = transformers.CLIPVisionConfig(
        image_size=16, patch_size=8, projection_dim=16, num_hidden_layers=layers, **sizes
    )
    size = {"height": 16, "width": 16}
    return {
        "image_encoder": transformers.CLIPVisionModelWithProjection(config),
        "processor": transformers.CLIPImageProcessor(size=size, crop_size=size),
    }


def t5(tokenizer: Any, width: int = 32, unified: bool = False) -> Any:
    """A T5 or (``unified``) UMT5 encoder with two layers."""
    kinds: tuple[Any, Any] = (
        (transformers.UMT5Config, transformers.UMT5EncoderModel)
        if unified
        else (transformers.T5Config, transformers.T5EncoderModel)
    )
    sizes: dict[str, Any] = {"d_model": width, "d_kv": 8, "d_ff": width, "num_layers": 2, "num_heads": 2}
    config, model = kinds
    return model(config(vocab_size=len(tokenizer), **sizes))


def convolutional(
    kind: Any, latent_channels: int = 4, levels: int = 2, width: int = 8, norm_num_groups: int = 4, **settings: Any
) -> Any:
    """An autoencoder that multiplies the latents' sides by 2 for each level after the first."""
    return kind(
        block_out_channels=(width,) * levels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        latent_channels=latent_channels,
        norm_num_groups=norm_num_groups,
        **settings,
    )


autoencoder = partial(convolutional, diffusers.AutoencoderKL, force_upcast=False, sample_size=16)
flux2_autoencoder = partial(convolutional, diffusers.AutoencoderKLFlux2, layers_per_block=1)


def tiny_autoencoder(latent_channels: int = 4) -> Any:
    """An ``AutoencoderTiny`` that doubles the sides of the latents."""
    return diffusers.AutoencoderTiny(
        latent_channels=latent_channels,
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    )


def unet(**changes: Any) -> Any:
    """A UNet with cross-attention at 8x8 and 4x4."""
    config: dict[str, Any] = {
        "sample_size": 8,
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D",) * 2,
        "up_block_types": ("CrossAttnUpBlock2D",) * 2,
        "norm_num_groups": 8,
        "cross_attention_dim": 16,
        "attention_head_dim": 4,
    }
    return diffusers.UNet2DConditionModel(**{**config, **changes})


def video_autoencoder(kind: Any, latent_channels: int = 4, levels: int = 2, **settings: Any) -> Any:
    """An autoencoder of videos that multiplies the latents' sides by 2 for each level after the first."""
    return kind(
        base_dim=8,
        z_dim=latent_channels,
        dim_mult=[1] * levels,
        num_res_blocks=1,
        temperal_downsample=[False] * (levels - 1),
        latents_mean=[0.1] * latent_channels,
        latents_std=[1.5] * latent_channels,
        **settings,
    )


def qwen_autoencoder() -> Any:
    """The autoencoder of Qwen-Image."""
    return video_autoencoder(diffusers.AutoencoderKLQwenImage)


def deep_autoencoder(latent_channels: int = 4) -> Any:
    """An ``AutoencoderDC`` that multiplies the latents' sides by 2."""
    return diffusers.AutoencoderDC(
        latent_channels=latent_channels,
        attention_head_dim=4,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        scaling_factor=0.41407,
    )
