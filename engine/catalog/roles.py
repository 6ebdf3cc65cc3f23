"""Which part of a transformer block a module is, judged by its name as public models name their modules.

Pure text: looks at no model. Imports no torch.
"""

from __future__ import annotations

from engine.catalog.modules import Role

_BY_LEAF: dict[str, Role] = {
    **dict.fromkeys(("q_proj", "q_a_proj", "q_b_proj", "query", "query_proj", "wq", "q_lin", "q"), "query"),
    **dict.fromkeys(("k_proj", "key", "key_proj", "wk", "k_lin", "k"), "key"),
    **dict.fromkeys(("v_proj", "value", "value_proj", "wv", "v_lin", "v"), "value"),
    # Fused projections count for every preset that asks for one of their parts; latent attention's shared
    # key-value projections are fused in the same sense.
    **dict.fromkeys(
        ("qkv_proj", "qkv", "query_key_value", "c_attn", "Wqkv", "wqkv", "att_proj", "kv_proj", "kv_b_proj"), "qkv"
    ),
    **dict.fromkeys(("kv_a_proj_with_mqa", "kv_a_proj", "to_qkv", "in_proj_qkv"), "qkv"),
    **dict.fromkeys(("o_proj", "out_lin", "wo"), "attention_out"),
}
_ROUTER_LEAVES = ("gate", "router", "shared_expert_gate", "wg")
# No router chooses among more experts than this; a gated feed-forward layer that is called "gate" is far wider.
_MOST_EXPERTS = 512
_MLP_PARTS = ("mlp", "ffn", "feed_forward", "feedforward", "moe", "expert", "ff")
_MLP_LEAVES = (
    "fc1",
    "fc2",
    "fc_in",
    "fc_out",
    "gate_proj",
    "up_proj",
    "down_proj",
    "gate_up_proj",
    "c_fc",
    "w1",
    "w2",
    "w3",
)


def role_of(path: str, kind: str, out_features: int) -> Role:
    """The role of the module at ``path`` (layer indices as "{}" or numbers); the output head is known by the caller."""
    if kind == "Embedding":
        return "embedding"
    if kind == "experts":
        return "experts"
    *parents, leaf = path.split(".")
    if leaf in _BY_LEAF:
        return _BY_LEAF[leaf]
    in_attention = any("attn" in part.lower() or "attention" in part.lower() for part in parents)
    if in_attention and leaf in ("c_proj", "dense", "out_proj", "proj"):
        return "attention_out"
    if leaf in _ROUTER_LEAVES and out_features <= _MOST_EXPERTS:
        return "router"
    if (
        leaf in _MLP_LEAVES
        or leaf.startswith("dense_")
        or any(
            name == part.lower() or (len(name) > 2 and name in part.lower()) for part in parents for name in _MLP_PARTS
        )
    ):
        return "mlp"
    return "other"
