"""Kinds of situations in which an earlier mechanism put RegBN at a wrong place, or broke what was around it."""
