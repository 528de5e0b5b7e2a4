"""Things that several test rooms share: random checkpoints, a server like the hub's."""
