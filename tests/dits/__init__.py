"""Every DiT of diffusers, tiny, with the true kind of every attention."""
