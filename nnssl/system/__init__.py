"""The operating system as nnssl uses it: files, worker processes, devices, resources and signals."""
