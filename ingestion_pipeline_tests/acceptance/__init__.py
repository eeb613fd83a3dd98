"""Tests that look from outside, as a user does."""
