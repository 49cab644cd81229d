"""Small models after the traits of code that is not diffusers', each with its own oracle."""
