"""What a sweep found, from its records: leaderboard, pictures, importance."""
