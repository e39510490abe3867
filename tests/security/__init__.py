"""Attacks that fail: what strangers on the host, senders of folders and accidents try."""
