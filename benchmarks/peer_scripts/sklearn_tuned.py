"""scikit-learn: one logistic regression per tag, its threshold tuned for F1 in five folds."""

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import TunedThresholdClassifierCV
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

with np.load("../embed/embeddings.npz") as file:
    data = dict(file)
tuned = TunedThresholdClassifierCV(LogisticRegression(max_iter=1000), scoring="f1")
model = make_pipeline(StandardScaler(), OneVsRestClassifier(tuned, n_jobs=-1))
model.fit(data["X_train"], data["Y_train"])
scores = model.predict_proba(data["X_test"])
thresholds = [one.best_threshold_ for one in model[-1].estimators_]
np.savez(
    "scores.npz", image_ids=data["ids"], tags=data["tags"], scores=scores, thresholds=thresholds
)
