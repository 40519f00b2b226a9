"""Detectors and attacks. Each finds faults; passing them all proves nothing."""
