"""The parts of a training beside its loss: checks before it starts, gradients' norm, shards, sums of a test."""
