"""Harden an image classifier on clean images only, and measure honestly how much harder to fool it became."""
