"""Tests mirror the package. A package itself, so that test files of the same name do not get in each other's way."""
