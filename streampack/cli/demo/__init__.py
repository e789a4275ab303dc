"""`streampack demo`: a training that is killed and resumed elsewhere, compared pack by pack."""
