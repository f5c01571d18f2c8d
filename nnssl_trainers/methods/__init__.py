"""The training methods, one file each: file name = registry key = documentation page = test."""
