"""Small programs that ship with the package and run as they are, and the data that they run on."""
