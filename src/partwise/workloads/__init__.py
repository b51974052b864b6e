"""Built-in data sets and the small models that fit them."""
