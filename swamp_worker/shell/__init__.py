"""The worker around its cores: the socket, the task tree, the identity on disk, what a person reads."""
