"""Tables from stored arrays: each made of an open run.

Here lives what is counted, averaged and put into cells; how tables look and where they go is
`jacobian_lab.report.writing`'s.
"""
