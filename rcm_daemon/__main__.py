"""`python -m rcm_daemon` is `rcm-daemon`."""

from rcm_daemon.cli import main

main()
