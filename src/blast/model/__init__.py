"""A whole model there and back: find its MLPs, convert, fuse, replace modules, count bytes."""
