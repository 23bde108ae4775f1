"""The model wing: where biases go, how they are added, proven and kept. Read in this order:

`terms` (the vocabulary), `families` (data: where each architecture keeps its projections), `attentions` and `sites`
(finding them), `adapter` (the vectors and the head of one name), `route` (which adapter each row uses), `heads` (each
row through its own head), `bank` (attaching and adding), `checkpointing` (recomputed layers keep their route), `verify`
(proof by identities), `store` and `restore` (files).
"""
