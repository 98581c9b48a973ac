"""Several processes, devices and a cluster's jobs: threads, signals, timeouts, shards, agreement."""
