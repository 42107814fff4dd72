"""The attack table: what somebody may try against a server that others can reach, a row each, and what comes of it."""
