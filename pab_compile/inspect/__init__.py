"""Inspection: what is found in a model, without compiling it."""
