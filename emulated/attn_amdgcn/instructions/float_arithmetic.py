"""float_arithmetic"""
