"""What `benchmarks/attack.py` does to samkd, a module for each kind of attack."""
