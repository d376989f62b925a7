"""`rcm-daemon bench`: what a slice costs in the daemon, beside what its CNN alone costs, in one run."""
