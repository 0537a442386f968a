"""The commands for a model of your own: prune, scan, generate, eval. They need no grid and no Snakemake."""
