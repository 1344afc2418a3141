"""What only a maintainer runs, from a clone: no part of the package that pip installs."""
