"""What the policy sees: from frames to Dict observations."""
