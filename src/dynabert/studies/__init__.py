"""Experiments over runs: what each ingredient is worth, how other methods compare, what the attention shows."""
