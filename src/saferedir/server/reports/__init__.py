"""What users report of images, what reviewers make of it, and guards that are trained anew by it."""
