"""
safespawn inside other libraries. Each module here needs the library that it is named after; nothing imports them but
the program that wants them.
"""
