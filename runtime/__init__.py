"""What runs: lowering, executables, progress."""
