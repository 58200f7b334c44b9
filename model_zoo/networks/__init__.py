"""The networks of the zoo: their descriptions and their modules."""
