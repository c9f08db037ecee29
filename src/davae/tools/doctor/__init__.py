"""`davae doctor`: a recipe examined before it costs anything."""
