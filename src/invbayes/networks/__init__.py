"""Part II of the book: blocks with a certified bound, invertible networks, their inverse."""
