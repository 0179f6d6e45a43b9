"""What the tests share: readers of the source tree, and other helpers that are not tests themselves."""
