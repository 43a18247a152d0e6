"""The command line: each verb reads its options, calls one workflow and prints what it gives.

Only this room imports typer.
"""
