"""What test modules share: small data, small networks, and one way to run the command line."""
