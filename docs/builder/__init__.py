"""What `python docs/build.py` consists of."""
