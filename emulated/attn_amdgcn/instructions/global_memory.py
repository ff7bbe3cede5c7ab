"""global_memory"""
