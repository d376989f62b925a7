"""What people see of a stack: `table` in the terminal, `picture` as a file; both show a `stack_view`."""
