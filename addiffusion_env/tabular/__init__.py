"""The decision process on a table of recorded attempts: tabular training, and what a policy leaves on the table."""
