"""What users plug into the frameworks they have; importing it imports none of them."""
