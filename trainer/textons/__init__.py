"""Single-image classifiers from before the networks: textons, a histogram of them, a small classifier.

`model.fit` gives any of the field's three methods: Hames et al. (7 x 7 patches, spherical k-means, logistic
regression), Kaur et al. (5 x 5 filters, soft assignment, a small network) and Somoza et al. (Leung-Malik
filters, nearest neighbours).
"""
