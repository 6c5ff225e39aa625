"""Kills, starves, damages, fuzzes and attacks the pipeline, and writes docs/reliability.md: see `__main__`.

Every part is a module with `run(place, seed, until) -> Tally`; `warm` has what they share.
"""
