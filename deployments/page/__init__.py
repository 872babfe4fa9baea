"""What people see of a server: a page at `/`, and the figures that it is drawn from."""
