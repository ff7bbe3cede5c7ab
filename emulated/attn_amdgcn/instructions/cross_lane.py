"""cross_lane"""
