"""The options of `slime data` that say where rows have their images, with the names and the meaning that they have in a run."""

from __future__ import annotations

import argparse

IMAGE_OPTIONS = ("multimodal_keys", "image_folders", "fetch_images")


def add_image_options(parser: argparse.ArgumentParser) -> None:
    """Declare them."""
    add = parser.add_argument
    add("--multimodal-keys", metavar="JSON", help='columns of images, such as \'{"image": "images"}\'')
    add(
        "--image-folders",
        nargs="+",
        metavar="DIR",
        help="where image files may lie besides the folder of their data file",
    )
    add("--fetch-images", action="store_true", help="fetch images that rows name by an address")
