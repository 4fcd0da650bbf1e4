"""A policy for any pipeline in minutes, without labels: record attempts, fit a calibrator, choose thresholds."""
