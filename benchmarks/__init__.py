"""Benchmarks of speed, memory and accuracy, one per script; `make bench` runs most of them."""
