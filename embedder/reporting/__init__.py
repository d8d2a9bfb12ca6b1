"""What the report pages of labelling, training and evaluation share.

html: rendering of a page, and the number and text formats of its template
plots: colours, axes and PNG of the pictures
templates/: `base.html` (style, policy, contents), `macros.html` (tables, tiles, pictures), a page a report, model card
"""
