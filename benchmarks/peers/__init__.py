"""What a user would run instead of distill-rt, each with the settings that make it fastest here."""
