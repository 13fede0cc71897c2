"""
What runs in the clean process; started by path, as a directory. The application imports the codec from here, no more.
"""
