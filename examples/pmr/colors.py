"""Colour gray digits by the usual recipe of coloured MNIST.

Ten mean colours; in training each digit's colour goes with its label, in testing it is drawn at random. Around the
mean it jitters normally, with one variance for the three channels (Kim et al., "Learning Not to Learn", CVPR 2019).
A model that reads the colour instead of the shape is perfect in training and guesses in testing.
"""

from __future__ import annotations

import numpy as np

#: Mean colour of each label, RGB.
MEAN_COLORS = np.array(
    [
        (220, 20, 60),  # crimson
        (0, 128, 128),  # teal
        (253, 233, 16),  # lemon
        (0, 149, 182),  # bondi blue
        (237, 145, 33),  # carrot
        (145, 30, 188),  # violet
        (70, 240, 240),  # cyan
        (250, 197, 187),  # pink
        (210, 245, 60),  # lime
        (128, 0, 0),  # maroon
    ],
    dtype=np.uint8,
)

#: Variance of the jitter, on channels scaled to 0..1.
JITTER_VARIANCE = 0.020


def colorize(
    gray: np.ndarray,
    means: np.ndarray,
    rng: np.random.Generator,
    variance: float = JITTER_VARIANCE,
) -> np.ndarray:
    """Multiply each gray image by one colour drawn around `MEAN_COLORS[mean]`.

    Args:
        gray: uint8 [N, H, W].
        means: integers [N] in 0..9, the mean colour of each image.
        rng: where the jitter comes from.
        variance: of the jitter, on channels scaled to 0..1; the result is clipped to that range.

    Returns:
        uint8 [N, 3, H, W].
    """
    color = MEAN_COLORS[means] / 255 + rng.normal(0.0, variance**0.5, size=(len(gray), 3))
    painted = gray[:, None].astype(np.float32) * color.clip(0, 1).astype(np.float32)[:, :, None, None]
    return painted.round().astype(np.uint8)


def uncolor(colored: np.ndarray) -> np.ndarray:
    """The gray digits that coloured ones were made from: the strongest channel, scaled back to the full range.

    Args:
        colored: uint8 [N, 3, H, W].

    Returns:
        uint8 [N, H, W], each image with 255 at its brightest (all zero where the image is black).
    """
    strongest = colored.max(axis=1).astype(np.float32)
    peak = strongest.max(axis=(1, 2), keepdims=True)
    return (strongest * (255 / np.maximum(peak, 1))).round().astype(np.uint8)
