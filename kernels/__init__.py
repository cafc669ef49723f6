"""Computation on arrays: random numbers, crop windows, pixels on the device. Knows no data set and no model."""
