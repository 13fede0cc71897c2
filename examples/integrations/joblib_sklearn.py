"""
joblib and scikit-learn: a cross-validation in safespawn's workers, beside running threads.
"""

import threading

import joblib
from sklearn.datasets import make_classification
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score

from safespawn.integrations.joblib import register


def square(number):
    return number * number


register()
threading.Thread(target=threading.Event().wait, daemon=True).start()
# No `if __name__ == "__main__"`: what this file defines is sent by value, as joblib's own backend does. The template
# imports scikit-learn once for all workers.
with joblib.parallel_config(backend="safespawn", n_jobs=2, preload=["sklearn.linear_model", "sklearn.model_selection"]):
    print(joblib.Parallel()(joblib.delayed(square)(number) for number in range(5)))
    x, y = make_classification(500, 10, random_state=0)
    scores = cross_val_score(LogisticRegression(), x, y, cv=5)
with joblib.parallel_config(backend="sequential"):
    assert list(scores) == list(cross_val_score(LogisticRegression(), x, y, cv=5))
print(f"accuracy {scores.mean():.2f}, as without workers")
