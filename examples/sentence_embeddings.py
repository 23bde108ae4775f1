"""Two adapters on one sentence encoder: train each with sentence-transformers' own losses, encode with both at once.

    python examples/sentence_embeddings.py sentence-transformers/all-MiniLM-L6-v2 out/

An adapter is a few kilobytes; the encoder is loaded once, stays frozen and serves them all.
"""

import sys
from pathlib import Path

from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import CosineSimilarityLoss, MultipleNegativesRankingLoss

from beft.interop.sentence import attach_sentence_transformer, merge_sentence_transformer
from beft.interop.sentence_trainer import BeftSentenceTransformerTrainer

QUESTIONS = Dataset.from_dict(
    {
        "question": ["Where is my parcel?", "How do I get my money back?", "My card was declined.", "Can I pay later?"],
        "answer": [
            "Track it in your account.",
            "Refunds take five days.",
            "Try another card.",
            "In three instalments.",
        ],
    }
)
SCORES = Dataset.from_dict(
    {
        "first": ["A man plays a flute.", "A plane is taking off.", "A woman cuts an onion.", "A dog runs."],
        "second": ["A man is playing music.", "A cat sleeps.", "Someone is cooking.", "A dog is running."],
        "score": [0.8, 0.0, 0.5, 1.0],
    }
)


def main(model: str, out: str) -> None:
    """Train `answers` and `similar`, save them, encode with one adapter a sentence, and fold one into a stock model."""
    st = SentenceTransformer(model)
    bank = attach_sentence_transformer(st, names=["answers", "similar"])
    for name, data, loss in (
        ("answers", QUESTIONS, MultipleNegativesRankingLoss(st)),
        ("similar", SCORES, CosineSimilarityLoss(st)),
    ):
        arguments = SentenceTransformerTrainingArguments(
            f"{out}/{name}-run", num_train_epochs=8, learning_rate=3e-3, save_strategy="no", report_to="none"
        )
        trainer = BeftSentenceTransformerTrainer(bank, name, arguments, train_dataset=data, loss=loss)
        trainer.train()
        trainer.save_model(f"{out}/{name}")
        size = sum(path.stat().st_size for path in Path(out, name).iterdir())
        print(f"{name}: {size / 1024:.0f} KB in {out}/{name}")

    texts = ["Where is my parcel?", "A dog is running.", "Where is my parcel?"]
    embeddings = st.encode(texts, route=["answers", "similar", None])  # None: the plain encoder
    print("one batch, an adapter a sentence:", embeddings.shape)

    bank.detach()
    merged = merge_sentence_transformer(st, f"{out}/answers")
    merged.save(f"{out}/merged")  # needs no beft to load
    print("merged, largest difference:", abs(merged.encode(texts[0]) - embeddings[0]).max())


if __name__ == "__main__":
    main(*sys.argv[1:3])
