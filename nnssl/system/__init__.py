"""What nnssl needs of the operating system: files, worker processes, devices, resources and signals."""
