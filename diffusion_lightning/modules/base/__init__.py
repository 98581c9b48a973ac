"""What training needs beside its loss: checks before it starts, the gradients' norm, shards, the sums of a test."""
