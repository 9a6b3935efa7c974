"""The `adm` command: one thin file per group of commands, without logic."""
