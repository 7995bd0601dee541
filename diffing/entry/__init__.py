"""What the entry points share. Only here and in the scripts do configs and concrete trackers exist."""
