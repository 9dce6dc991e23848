"""Plugins for the users' frameworks; importing this package imports none of them."""
