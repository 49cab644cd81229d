"""Sites: what can be reused, and what it takes to leave it out."""
