"""Speed measurements, run one by one as modules."""
