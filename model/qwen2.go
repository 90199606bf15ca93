package model

// qwen2 is Qwen2ForCausalLM, which Qwen2 and Qwen2.5 checkpoints use: RMSNorm
// before attention and MLP, rotary embeddings, grouped-query attention with a
// bias on the query, key and value projections only, SwiGLU, and a head that
// the small models tie to the embedding.
var qwen2 = family{
	architecture: "Qwen2ForCausalLM",
	qkvBias:      true,
	fixed:        map[string]any{"use_sliding_window": false},
}
