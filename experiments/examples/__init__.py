"""Programs to start from: each is complete, imports only public names, and runs under every launcher."""
