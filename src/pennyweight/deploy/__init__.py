"""What a plan takes where it runs: products on packed weights, and how long they take."""
