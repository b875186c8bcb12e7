"""The whole job and its command line: configurations, runs, stage 2, scores, reports."""
