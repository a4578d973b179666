"""Who places workers: processes of this machine, or a Ray cluster."""
