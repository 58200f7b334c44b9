"""firebox.export"""
