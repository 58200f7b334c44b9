"""Weight files: checkpoints, published weights and downloads."""
