"""Puts inspections, plans and rewritten hosts into words: tables, JSON, diffs. Computes nothing of its own."""

from __future__ import annotations
