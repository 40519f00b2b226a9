"""The commands around a run: does the proxy suit, who withstands whom, what if a client had not been there."""
