"""Metrics: pure functions of features; the network that the features come from is an argument."""
