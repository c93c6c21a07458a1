"""Experiments over runs: what a trained elastic model does, beyond how good each of its sizes is."""
