# SPDX-License-Identifier: Apache-2.0
from PIL import Image, ImageFont

from diffusers_mdm.pipelines import image_grid


def test_grid_shows_every_pixel_of_every_level():
    pyramid = [[Image.new("RGB", (side, side), color) for color in ("red", "blue")] for side in (16, 64)]
    pyramid[0][1].putpixel((0, 0), (0, 255, 0))
    grid = image_grid.make_grid(pyramid, ["one", "two"])
    counts = {color: count for count, color in grid.getcolors(maxcolors=2**16)}
    cell = image_grid.MIN_CELL
    block = (cell // 16) ** 2
    assert counts[(255, 0, 0)] == 2 * cell * cell
    assert counts[(0, 255, 0)] == block
    assert counts[(0, 0, 255)] == 2 * cell * cell - block


def test_grid_takes_images_that_are_not_square():
    pyramid = [[Image.new("RGB", (width, width // 2), "red")] for width in (16, 64)]
    grid = image_grid.make_grid(pyramid, ["wide"])
    assert (image_grid.MIN_CELL**2, (255, 0, 0)) in grid.getcolors(2**16)


def test_an_empty_prompt_has_an_empty_label():
    pyramid = [[Image.new("RGB", (64, 64), "red")]]
    assert image_grid.make_grid(pyramid, [""]).size == image_grid.make_grid(pyramid, ["red"]).size


def test_long_labels_are_wrapped_to_the_cell():
    font = ImageFont.load_default(image_grid.FONT_SIZE)
    label = image_grid.wrap_label("a very long prompt that cannot stand on one line, 3d render", font, 100)
    assert len(label.splitlines()) > 2
    assert all(font.getlength(line) <= 100 for line in label.splitlines())
