"""Tiny random `transformers` models, grouped by the way in which their modalities meet."""

from . import (
    contrastive,
    cross_attention,
    detection,
    documents,
    joint_sequence,
    more_scatter,
    other_senses,
    scatter,
    speech_and_music,
)

CASES = (
    *contrastive.CASES,
    *joint_sequence.CASES,
    *cross_attention.CASES,
    *scatter.CASES,
    *documents.CASES,
    *speech_and_music.CASES,
    *detection.CASES,
    *more_scatter.CASES,
    *other_senses.CASES,
)
