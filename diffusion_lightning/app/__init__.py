"""The page of `diffusion-lightning app`: its looks, its visitors, and the work that it asks of `predict` and `edit`."""
