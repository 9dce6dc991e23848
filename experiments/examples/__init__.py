"""Programs to start from: each is complete, imports public names only, and runs under every launcher."""
