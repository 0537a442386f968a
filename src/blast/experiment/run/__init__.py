"""How a point runs: job, worker, launch, locks, progress, verdict."""
