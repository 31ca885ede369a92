"""Cells of a run as jobs of Slurm or tasks of Ray, which decide where and when; results are those of one process."""
