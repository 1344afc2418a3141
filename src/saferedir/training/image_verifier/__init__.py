"""Training of an image verifier: a verifier of finished images, apart from the guard whose folder it joins."""
