"""Handles on models and pipelines: their plan can be exchanged while they run."""
