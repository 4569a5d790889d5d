"""Evaluators: what a task's own metrics do not say of a model's safety, bias and calibration."""
