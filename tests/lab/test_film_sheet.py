"""The sheet of filmstrips in the README."""

import numpy as np
from PIL import Image

from addiffusion_lab.filmstrips import BETWEEN, stacked


def test_strips_stand_beside_each_other_where_the_widest_leaves_room():
    sizes = [(200, 10, "red"), (90, 20, "lime"), (200 - BETWEEN - 90, 30, "blue"), (90, 10, "red"), (120, 10, "lime")]
    sheet = np.asarray(stacked([Image.new("RGB", size[:2], size[2]) for size in sizes]))
    assert sheet.shape == (10 + 30 + 10 + 10, 200, 3)
    corners = [(0, 0), (10, 0), (10, 90 + BETWEEN), (40, 0), (50, 0)]  # the last does not fit beside the one before
    for (top, left), (width, height, colour) in zip(corners, sizes, strict=True):
        assert (
            sheet[top : top + height, left : left + width] == Image.new("RGB", (1, 1), colour).getpixel((0, 0))
        ).all()
