"""Calibration: plans that are measured on the model that they are for."""
