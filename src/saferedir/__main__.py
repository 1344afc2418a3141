"""`python -m saferedir` is the command line."""

from saferedir.cli import app

if __name__ == "__main__":
    app(prog_name="saferedir")
