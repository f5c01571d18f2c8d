"""Which run, or pair of runs, predicts best on held-out labelled cases."""
