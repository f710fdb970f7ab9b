"""What people write: the repository, its models and workflows, and the checks on them."""
