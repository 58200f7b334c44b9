"""What a network is: the graph, its operations, its rewrites and its exact integer reference."""
