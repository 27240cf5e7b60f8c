"""What `identity serve` runs: a supervisor, the web processes, and the courier."""
