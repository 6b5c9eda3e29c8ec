"""JoSE: words, their contexts and documents as points of one unit sphere.

Meng et al., "Spherical Text Embedding", NeurIPS 2019 (https://arxiv.org/abs/1911.01196), in the
reading of Su, 2019 (https://kexue.fm/archives/7063). A center word u, a word v of its context and
the document d that holds them are pulled together, a random word u' is pushed away:

    L = max(0, m - v.u - u.d + v.u' + u'.d)        (paper, Equation 5; `is_joint`)

The authors' program has two hinges in its place, one for words and one for documents:

    L = max(0, m - v.u + v.u') + max(0, m - u.d + u'.d)
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput, can_return_tuple


@strict
class JoseConfig(PreTrainedConfig):
    """Configuration of a JoseModel and of how it is trained.

    Args:
        vocab_size: Words V, among them the one for unknown words, which is word 0.
        num_documents: Documents N that have a vector; 0 for none.
        has_context_embeddings: Whether there is a table of context words. Training needs it, use
            does not.
        embedding_dim: Size D of the vectors.
        variant: What `loss`, `is_joint` and `step_factors` are where they are not given. "genzoo"
            was best here: cross-entropy for words and for documents, no factors. "reference" is the
            authors' program: two hinges, and the factors that it multiplies its steps with. "paper"
            is the paper: one joint hinge, steps times 1 - cos.
        window_size: The largest distance of two words that make a pair.
        num_negatives: Random words K for each pair.
        margin: m of the loss.
        min_count: Words that are rarer are left out.
        subsample_threshold: Frequency from which words are thinned out, t of word2vec; 0 for none.
        noise_exponent: Random words are drawn as often as they occur, to this power.
        loss: "hinge", or "cross_entropy" for softplus(s z) / s in the place of max(0, z); None for
            what the variant has.
        loss_scale: s of the cross-entropy.
        is_joint: Whether words and documents share one hinge; None for what the variant has.
        step_factors: What the steps of the positive word, of the negative word, and of the context
            or document are multiplied with, each "none", "calibrated" (1 - cos, the paper's) or
            "reference" (1 - v.u, 2 v.u', 1 - (v.u - v.u')); None for what the variant has.
        use_retraction: Whether rows return to length 1 after every step. Without it, the steps are
            those of gradient descent through x / |x|.
        num_document_updates: Steps with the document for each word, where the hinges are two.
    """

    model_type = "genzoo_jose"

    vocab_size: int = 2
    num_documents: int = 0
    has_context_embeddings: bool = True
    embedding_dim: int = 100
    variant: Literal["genzoo", "reference", "paper"] = "genzoo"
    window_size: int = 5
    num_negatives: int = 2
    margin: float | int = 0.15
    min_count: int = 5
    subsample_threshold: float = 1e-3
    noise_exponent: float = 0.75
    loss: Literal["hinge", "cross_entropy"] | None = None
    loss_scale: float = 10.0
    is_joint: bool | None = None
    step_factors: list[str] | None = None
    use_retraction: bool = True
    num_document_updates: int = 1

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        self.margin = float(self.margin)  # a whole number would make the kernels slow
        loss, is_joint, factor = {
            "genzoo": ("cross_entropy", False, "none"),
            "reference": ("hinge", False, "reference"),
            "paper": ("hinge", True, "calibrated"),
        }.get(self.variant, (None, None, ""))
        self.loss = self.loss or loss
        self.is_joint = is_joint if self.is_joint is None else self.is_joint
        self.step_factors = [factor] * 3 if self.step_factors is None else self.step_factors

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs) -> Any:
        """As in every config, but for `variant`: in from_pretrained, it names the weights' file."""
        held = {name: kwargs.pop(name) for name in ("variant",) if name in kwargs}
        found = super().from_dict(config_dict, **kwargs)
        return (found[0], found[1] | held) if isinstance(found, tuple) else found

    def validate_architecture(self) -> None:
        """Dies unless sizes and settings can be had together."""
        for name in ("vocab_size", "embedding_dim", "window_size", "num_negatives", "min_count"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("num_documents", "subsample_threshold", "num_document_updates", "margin"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if not self.loss_scale > 0:
            raise ValueError(f"loss_scale must be positive, got {self.loss_scale}")
        factors = self.step_factors or []
        known = ("none", "calibrated", "reference")
        if len(factors) != 3 or not set(factors) <= {*known}:
            raise ValueError(f"step_factors must be three of {', '.join(known)}, got {factors}")
        if self.is_joint and ("reference" in factors or len(set(factors)) > 1):
            raise ValueError(
                "the joint hinge has one step factor for all, none or calibrated: those of the "
                f"reference are for two hinges; got {factors}"
            )


@dataclass
class JoseOutput(ModelOutput):
    """What a JoseModel returns.

    Args:
        loss: The mean over pairs and negative words, when pairs were passed.
        last_hidden_state: (B, T, D), each word's vector, zero for unknown words and padding.
        pooler_output: (B, D), the direction of their sum; zero where no word is known.
    """

    loss: Tensor | None = None
    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None


class JoseModel(PreTrainedModel):
    """Three tables of unit vectors.

    Attributes:
        word_embeddings: (V, D), center words u: what is meant by "the word vectors".
        context_embeddings: (V, D), context words v, or None.
        document_embeddings: (N, D), documents d in the order of the corpus, or None.
        word_counts: int64, (V,), how often each word occurred; zeros where nobody knows.
    """

    config: JoseConfig
    config_class = JoseConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    word_counts: Tensor
    accepts_loss_kwargs = False  # the loss is a mean, which Trainer divides by accumulated steps

    @property
    def dummy_inputs(self) -> dict[str, Tensor]:
        """A few inputs of this network, the same ones on every call: what it is tried with."""
        ids = torch.arange(12).view(3, 4) * 7 % self.config.vocab_size
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def __init__(self, config: JoseConfig):
        super().__init__(config)
        size = config.embedding_dim
        self.word_embeddings = nn.Embedding(config.vocab_size, size)
        self.context_embeddings = None
        if config.has_context_embeddings:
            self.context_embeddings = nn.Embedding(config.vocab_size, size)
        self.document_embeddings = None
        if config.num_documents:
            self.document_embeddings = nn.Embedding(config.num_documents, size)
        self.register_buffer("word_counts", torch.zeros(config.vocab_size, dtype=torch.long))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Embedding):  # uniform on the sphere
            init.normal_(module.weight)
            if not getattr(module.weight, "_is_hf_initialized", False):  # nor is what was loaded
                F.normalize(module.weight, dim=-1, out=module.weight)  # in place, tables are large
        elif isinstance(module, JoseModel):
            init.zeros_(module.word_counts)

    def get_input_embeddings(self) -> nn.Module:
        """The table of center words."""
        return self.word_embeddings

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        word_ids: Tensor | None = None,
        context_ids: Tensor | None = None,
        document_ids: Tensor | None = None,
        negative_ids: Tensor | None = None,
        return_loss: bool = True,  # Trainer looks for this name where there are no labels
        **kwargs,
    ) -> JoseOutput:
        """Embeds texts, or takes the loss of pairs, or both.

        Args:
            input_ids: (B, T), words of texts.
            attention_mask: (B, T), 0 for padding.
            word_ids: (P,), center words u of pairs.
            context_ids: (P,), the context word v of each, or None for words and documents alone.
            document_ids: (P,), the document d that each is in, or None for words alone.
            negative_ids: (P, K), random words u'; where one equals u, it does not count.
            return_loss: Whether pairs have their loss taken.
            **kwargs: Ignored, such as the `token_type_ids` of some tokenizers.

        Raises:
            ValueError: If neither texts nor pairs are there, or a table for them is not.
        """
        hidden = pooled = loss = None
        if input_ids is not None:
            known = input_ids != 0  # word 0 is the unknown word
            if attention_mask is not None:
                known = known & attention_mask.bool()
            hidden = self.word_embeddings(input_ids) * known[..., None]  # (B, T) -> (B, T, D)
            pooled = F.normalize(hidden.sum(dim=-2), dim=-1)  # (B, T, D) -> (B, D)
        if word_ids is not None and return_loss:
            loss = self._loss(word_ids, context_ids, document_ids, negative_ids)
        if hidden is None and word_ids is None:
            raise ValueError("forward needs input_ids, or word_ids with the rest of the pairs")
        return JoseOutput(loss=loss, last_hidden_state=hidden, pooler_output=pooled)

    def _loss(
        self,
        word_ids: Tensor,
        context_ids: Tensor | None,
        document_ids: Tensor | None,
        negative_ids: Tensor | None,
    ) -> Tensor:
        if negative_ids is None or (context_ids is None and document_ids is None):
            raise ValueError(
                "pairs need negative_ids and context_ids or document_ids beside word_ids"
            )
        u, negatives = self.word_embeddings(word_ids), self.word_embeddings(negative_ids)
        is_other = negative_ids != word_ids[:, None]
        gaps: list[Tensor] = []
        for table, ids in (
            ("context_embeddings", context_ids),
            ("document_embeddings", document_ids),
        ):
            if ids is None:
                continue
            if getattr(self, table) is None:
                raise ValueError(f"this model has no {table}: it can be used, not trained")
            v = getattr(self, table)(ids)  # (P, D)
            # v.u - v.u', a row for each pair, a column for each negative word
            gaps.append((v * u).sum(-1)[:, None] - (negatives @ v[..., None]).squeeze(-1))
        margin, scale = self.config.margin, self.config.loss_scale
        if self.config.is_joint:
            gaps = [torch.stack(gaps).sum(0)]
        if self.config.loss == "hinge":
            losses = [(margin - gap).clamp_min(0) for gap in gaps]
        else:
            losses = [F.softplus(scale * (margin - gap)) / scale for gap in gaps]
        total = torch.stack(losses).sum(0) * is_other  # (P, K)
        return total.sum() / is_other.sum().clamp_min(1)
