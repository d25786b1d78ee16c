"""The training-data index: which documents of a corpus are close to a text.

`build` makes an index of a corpus for one checkpoint, `reader` opens it, and `search` finds evidence in it by four
scores: verbatim matches (`suffixes`), concept signatures and hidden rows (`signatures`), and influence (`gradients`,
`influence`).
"""
