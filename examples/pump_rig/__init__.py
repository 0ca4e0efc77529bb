"""A pump on a motor, watched by eight sensors at eight rates: which fault does it have?"""
