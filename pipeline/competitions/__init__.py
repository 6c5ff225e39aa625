"""One reader per raw layout, one YAML per competition.

A reader is a module with two functions: `list_items`, which names every image and its mask texts and says what is wrong
with the listing, and `read_image`, which opens one of them.
"""
