"""Small diffusion transformers drawn at random, each with its truth and its own oracle.

``python -m random_models 1000 0`` (in ``tests/``) checks the models of the seeds 0 to 999.
"""
