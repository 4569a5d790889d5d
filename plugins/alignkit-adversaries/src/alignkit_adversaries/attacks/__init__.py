"""Attacks: how robust a finished model is, measured."""
