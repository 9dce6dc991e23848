"""How well a straggler is found by how long the other workers wait."""
