"""What a reviewer of a service needs, in one folder: what it is made of, what was measured of exactly that, and what was not."""
