"""scikit-learn: one logistic regression per tag at its default strength, threshold 0.5."""

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

with np.load("../embed/embeddings.npz") as file:
    data = dict(file)
head = OneVsRestClassifier(LogisticRegression(max_iter=1000), n_jobs=-1)
model = make_pipeline(StandardScaler(), head)
model.fit(data["X_train"], data["Y_train"])
scores = model.predict_proba(data["X_test"])
halves = np.full(len(data["tags"]), 0.5)
np.savez("scores.npz", image_ids=data["ids"], tags=data["tags"], scores=scores, thresholds=halves)
