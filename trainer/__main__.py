"""`python -m trainer` is `rcm-trainer`."""

from trainer.entry import main

main()
