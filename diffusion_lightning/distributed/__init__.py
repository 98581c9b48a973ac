"""What several processes, devices and a cluster's jobs ask for: threads, ends, waiting, shards, agreement."""
