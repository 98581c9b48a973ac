"""Scripts that print the figures of the README; no part of the package."""
