"""Data sets inside the package; NOTICE.txt says where they come from and under which licence."""
