"""firebox.runtime"""
