"""Tiny random `transformers` models, grouped by the way in which their modalities meet."""

from . import contrastive, cross_attention, joint_sequence, scatter

CASES = (
    *contrastive.CASES,
    *joint_sequence.CASES,
    *cross_attention.CASES,
    *scatter.CASES,
)
