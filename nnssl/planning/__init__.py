"""Fingerprint, plan and preprocessing of labelled and unlabelled cases."""
