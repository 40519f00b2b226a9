"""The one check that every image model makes."""

from __future__ import annotations


def image_shape(model: str, shape: tuple[int, ...], smallest: int) -> tuple[int, int, int]:
    """(channels, height, width) of `shape`.

    Raises:
        ValueError: rows of a table, or images smaller than the model's strides allow.
    """
    if len(shape) != 3:
        raise ValueError(
            f"model {model!r} needs images [channels, height, width]; rows here are {list(shape)}: "
            "use 'linear' or 'mlp'"
        )
    channels, height, width = shape
    if min(height, width) < smallest:
        raise ValueError(
            f"model {model!r} needs images of at least {smallest}x{smallest}; these are {height}x{width}: "
            "use 'linear' or 'mlp'"
        )
    return channels, height, width
