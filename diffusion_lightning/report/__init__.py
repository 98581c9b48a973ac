"""A run's report: one page of its figures and pictures, for a browser without a network."""
