"""The `adm` command: one thin file a group, and no logic."""
