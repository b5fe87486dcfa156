"""The filters: each a policy in one file, with its settings and its executable."""
