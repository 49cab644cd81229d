"""Calibration: plans that follow from measurements of the model."""
