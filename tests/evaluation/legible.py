"""What a figure must be so that it can be read where it is shown."""

import io
import itertools

from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from addiffusion_env.evaluation import plots


def assert_legible(figure):
    """As wide as the page's text, no letter under 8 points, none cut, no two texts on each other, no legend on data."""
    with Image.open(io.BytesIO(plots.png_of(plots.load_pyplot(), figure))) as shown:
        assert shown.width == plots.WIDTH * plots.DPI == 1040 and shown.height >= 260
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    shown_axes = [axes for axes in figure.axes if axes.get_visible()]
    legends = figure.legends + [axes.get_legend() for axes in shown_axes if axes.get_legend()]
    texts = list(figure.texts) + [text for legend in legends for text in legend.get_texts()]
    for axes in shown_axes:
        ticks = [
            tick.label1
            for axis in (axes.xaxis, axes.yaxis)
            for tick, place in zip(axis.get_major_ticks(), axis.get_ticklocs(), strict=True)
            if axis.get_view_interval().min() <= place <= axis.get_view_interval().max()
        ]
        texts += [axes.title, axes.xaxis.label, axes.yaxis.label, *ticks, *axes.texts]
    texts = [text for text in texts if text.get_visible() and text.get_text()]
    boxes = [text.get_window_extent(renderer) for text in texts]
    for text, box in zip(texts, boxes, strict=True):
        assert text.get_fontsize() >= 8, text
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1, text
    for (one, a), (two, b) in itertools.combinations(zip(texts, boxes, strict=True), 2):
        assert not _overlap(a, b), (one, two)
    for legend, axes in itertools.product(legends, shown_axes):
        assert not _overlap(legend.get_window_extent(renderer), axes.get_window_extent(renderer)), "covers data"


def _overlap(a, b):
    """Whether two boxes share more than a pixel each way."""
    return min(a.x1, b.x1) - max(a.x0, b.x0) > 1 and min(a.y1, b.y1) - max(a.y0, b.y0) > 1
