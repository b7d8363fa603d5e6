"""What any program needs: errors, files, signals, progress, devices, processes."""
