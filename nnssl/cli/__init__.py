"""The `nnssl_*` commands, one file each; heavy imports happen inside `main`."""
