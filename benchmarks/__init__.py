"""Is it as fast as it should be? One script per claim; `make bench` runs them all."""
