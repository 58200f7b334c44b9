"""firebox.model_zoo"""
