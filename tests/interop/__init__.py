"""Tests of beft inside other libraries."""
