"""The demo page: a prompt drawn live by a policy, its probabilities at each decision, fixed-step samplers beside it."""
