"""General functions for all programs: errors, files, signals, progress, devices, processes."""
