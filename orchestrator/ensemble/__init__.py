"""Ensembles as trees: one walk that every driver uses, and the fitting of what the nodes answer by.

- The walk: `tree` drives it, `node` is what every kind of node has, `pooled` is what those have whose members
  all answer. Kinds: `leaf`, `parallel`, `mix`, `cascade`, `stack`.
- Combining: `combine` makes one score of several. Fitted numbers of a mix: `weights`, `greedy`, `per_class`,
  `gate`; of a stack: `meta`. They make an `objective` small; `folds` and `strength` hold them back. `online`
  learns weights from labels that come later.
- Cascades: `certainty` says how sure an answer is, `thresholds` where rows leave, `guarantee` what it costs.
- Confidence and failures: `calibrate`, `conformal`; `quorum`, `missing`, `expect`, `guard`.
- `fit` fits a whole tree.
"""
