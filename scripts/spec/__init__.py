"""What keeps the written specification true: golden vectors and pictures, made from the code."""
