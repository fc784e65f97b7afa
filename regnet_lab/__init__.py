"""Deformable medical image registration: a pair goes in, a model answers with fields."""

__version__ = "0.1.0"
