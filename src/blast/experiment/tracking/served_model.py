"""The code of a model in MLflow. MLflow runs this file when the model is loaded, so nothing is pickled.

model = mlflow.pyfunc.load_model("runs:/RUN/model")
model.predict(["def main("], params={"max_new_tokens": 20})    # a language model: how each text goes on
model.predict([[12, 7, 301], [5, 9, 11]])                      # logits of the next token, [batch, vocabulary]
model.predict(images)                                          # float [batch, channels, height, width]: classes
model.unwrap_python_model().model                              # the torch module, sparse as it was saved
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

# In place of the weights of a large model: where its checkpoint is.
REFERENCE = "checkpoint.json"
# There is no schema of the input: texts, token ids and images are all welcome.
warnings.filterwarnings("ignore", message=".*Add type hints to the `predict` method")


class SavedModel(PythonModel):
    """A checkpoint of `blast.save`, loaded as it was saved: sparse matrices stay sparse."""

    def load_context(self, context: Any) -> None:
        """Loads the checkpoint, that of the artifact or the one that it names."""
        import blast
        from blast.files import file_digest

        folder = Path(context.artifacts["checkpoint"])
        if (folder / REFERENCE).is_file():
            named = json.loads((folder / REFERENCE).read_text(encoding="utf-8"))
            folder = Path(named["folder"])
            remedy = f"copy the folder here, or run `blast mlflow --register NAME {named['point']}` where it is."
            if not folder.is_dir():
                raise blast.BlastError(f"{folder}: the checkpoint of this model is not on this machine; {remedy}")
            if file_digest(folder / named["weights"]) != named["digest"]:
                raise blast.BlastError(f"{folder}: this checkpoint is another than that of the run; {remedy}")
        self.model = blast.load(folder)
        self.words: Any = None
        if (folder / "tokenizer.json").is_file():
            from tokenizers import Tokenizer

            self.words = Tokenizer.from_file(str(folder / "tokenizer.json"))

    # Without annotations, which MLflow would take for a schema of the input.
    def predict(self, context, model_input, params=None):
        """Continues texts, gives the logits of the token that comes next, or classifies images or texts.

        Args:
            context: Not used.
            model_input: Texts, a table with a column of texts, token ids `[batch, length]`, or images as float
                `[batch, channels, height, width]`.
            params: `max_new_tokens` for texts.
        """
        import torch

        values = _plain(model_input)
        with torch.inference_mode():
            if isinstance(values, list) and values and isinstance(values[0], str):
                return self._texts(values, int((params or {}).get("max_new_tokens", 20)))
            inputs = torch.as_tensor(np.asarray(values))
            if inputs.is_floating_point():
                from blast.evaluation.class_logits import class_logits

                return class_logits(self.model, inputs.float()).softmax(-1).numpy()
            return self._logits(inputs.long())[:, -1].numpy()

    def _logits(self, ids: Any) -> Any:
        found = self.model(ids)
        return getattr(found, "logits", found).float()

    def _texts(self, texts: list[str], new: int) -> Any:
        import torch

        from blast import BlastError

        if self.words is None:
            raise BlastError("this model came without a tokenizer; give token ids, or pixels of images, not texts.")
        if hasattr(self.model, "classifier"):
            from blast.evaluation.class_logits import class_logits

            rows = [torch.tensor([self.words.encode(text).ids]) for text in texts]
            return np.concatenate([class_logits(self.model, row).softmax(-1).numpy() for row in rows])
        found = []
        for text in texts:
            ids = torch.tensor([self.words.encode(text).ids or [0]])
            out = self.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False)
            found.append(self.words.decode(out[0, ids.shape[1] :].tolist()))
        return found


def _plain(values: Any) -> Any:
    """A list of texts where there are texts; else the values as they are."""
    if hasattr(values, "columns"):
        values = values[values.columns[0]].tolist() if len(values.columns) == 1 else values.to_numpy()
    if isinstance(values, np.ndarray) and values.dtype.kind in "OU":
        values = values.ravel().tolist()
    return [values] if isinstance(values, str) else values


set_model(SavedModel())
