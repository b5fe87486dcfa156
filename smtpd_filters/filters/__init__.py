"""The filters: each a policy in one file, or a package whose `policy` is to be read first."""
