"""Sites: which outputs can be reused, and which nodes need not run then."""
