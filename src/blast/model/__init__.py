"""Operations on a whole model: find its MLPs, convert, fuse, replace modules, count bytes."""
