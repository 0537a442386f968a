"""The source of each figure and table, one file each; pictures and tables are written into the folder above."""
