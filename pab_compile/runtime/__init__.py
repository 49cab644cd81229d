"""Run time: whose step a call is, and what is cached for it."""
