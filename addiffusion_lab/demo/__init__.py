"""The demo page: live generation by a policy, its probabilities at each decision, and fixed-step samplers."""
