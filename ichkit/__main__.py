"""`python -m ichkit` is `ichkit`."""

from ichkit.cli.main import main

if __name__ == "__main__":
    main(prog_name="ichkit")
