"""Scripts that print the figures of the README and of docs/; no part of the package."""
