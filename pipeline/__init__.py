"""Raw competition files in, a submission you can trust out. `python -m pipeline --help` lists the commands."""
