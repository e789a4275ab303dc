"""`streampack plan`: what a configuration needs on so many ranks and workers."""
