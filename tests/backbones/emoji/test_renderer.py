from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from addiffusion_env.errors import WeightsError
from addiffusion_env.prompts.emoji_vocabulary import CLASSES, COLORS
from addiffusion_lab.emoji_training.layouts import sample_scenes
from addiffusion_lab.emoji_training.renderer import SPRITE_SIZE, Renderer, build_sprites, empty_layout, load_sprites

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
CUP = 36


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer()


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def one_sprite(color: int = 0, x: float = 32, y: float = 32, size: float = 30) -> np.ndarray:
    layouts = empty_layout()
    layouts[0, 0] = (CUP, color, x, y, size)
    return layouts


def test_images_have_shape_and_range(renderer: Renderer) -> None:
    _, layouts = sample_scenes(40, seed=1)
    images = renderer(layouts, seeded())
    assert images.shape == (40, 3, 64, 64)
    assert images.dtype == torch.float32
    assert images.min() >= -1
    assert images.max() <= 1
    assert (images.amax((1, 2, 3)) - images.amin((1, 2, 3)) > 0.2).all()


def test_images_are_those_of_the_training_data(renderer: Renderer) -> None:
    # From the reference renderer: sample_scenes(4, 0) with a generator seeded 0.
    images = renderer(sample_scenes(4, seed=0)[1], seeded())
    assert images.mean((1, 2, 3)).tolist() == pytest.approx([0.33269, 0.15163, 0.21982, 0.37829], abs=1e-4)
    assert images[0, :, 40, 17].tolist() == pytest.approx([0.50318, 0.49604, 0.50432], abs=1e-4)


def test_one_generator_one_image(renderer: Renderer) -> None:
    layouts = sample_scenes(8, seed=2)[1]
    torch.testing.assert_close(renderer(layouts, seeded(3)), renderer(torch.from_numpy(layouts), seeded(3)))
    assert not torch.equal(renderer(layouts, seeded(3)), renderer(layouts, seeded(4)))


def test_an_empty_layout_is_a_smooth_background(renderer: Renderer) -> None:
    image = renderer(empty_layout(2), seeded())
    torch.testing.assert_close(image, image[..., :1].expand_as(image))
    assert (image[..., 1:, :] - image[..., :-1, :]).abs().max() < 0.02


def test_a_sprite_covers_its_place_only(renderer: Renderer) -> None:
    plain = renderer(empty_layout(), seeded())
    drawn = renderer(one_sprite(x=20, y=40, size=24), seeded())
    rows, columns = ((drawn - plain).abs().sum((0, 1)) > 1e-3).nonzero().unbind(1)
    assert rows.min() >= 27
    assert rows.max() <= 52
    assert columns.min() >= 7
    assert columns.max() <= 32
    assert rows.float().mean() == pytest.approx(40, abs=3)
    assert columns.float().mean() == pytest.approx(20, abs=3)


@pytest.mark.parametrize("color", range(1, 1 + len(COLORS)))
def test_tints_look_like_their_names(renderer: Renderer, color: int) -> None:
    plain, drawn = renderer(empty_layout(), seeded()), renderer(one_sprite(color), seeded())
    covered = (drawn - plain).abs().sum((0, 1)) > 0.05
    red, green, blue = ((drawn[0, :, covered].mean(1) + 1) / 2).tolist()
    looks = {
        "red": red > 2 * max(green, blue),
        "orange": red > green > blue and red > 1.3 * green,
        "yellow": min(red, green) > 1.5 * blue,
        "green": green > 1.3 * max(red, blue),
        "blue": blue > 1.3 * max(red, green),
        "purple": blue > red > green,
        "pink": red > blue > green,
        "brown": red > green > blue and red < 0.7,
        "black": max(red, green, blue) < 0.35,
        "white": min(red, green, blue) > 0.75,
    }
    assert looks[COLORS[color - 1]], (red, green, blue)


def test_later_sprites_cover_earlier_ones(renderer: Renderer) -> None:
    both, top = empty_layout(), empty_layout()
    both[0, 0], both[0, 1] = (CUP, 1, 32, 32, 30), (CUP, 5, 32, 32, 30)
    top[0, 1] = both[0, 1]
    visible = renderer.atlas[CUP, 5, 3] > 0.999
    centre = slice(24, 40)
    assert visible[8:24, 8:24].any()
    difference = (renderer(both, seeded()) - renderer(top, seeded())).abs()[..., centre, centre]
    assert difference.mean() < 0.1


def test_sprites_are_square_and_opaque_somewhere() -> None:
    sprites = load_sprites()
    assert sprites.shape == (len(CLASSES), SPRITE_SIZE, SPRITE_SIZE, 4)
    assert sprites.dtype == np.uint8
    assert (sprites[..., 3].reshape(len(CLASSES), -1).max(1) > 200).all()


@pytest.mark.skipif(not FONT.exists(), reason=f"no Noto Color Emoji at {FONT}")
def test_sprites_can_be_built_again() -> None:
    built = build_sprites(FONT).astype(int)
    assert np.abs(built - load_sprites()).mean() < 8  # another version of the font may have moved an outline


def test_build_sprites_names_the_missing_font(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no colour font at .*absent\.ttf"):
        build_sprites(tmp_path / "absent.ttf")
