package model

// qwen2 is Qwen2ForCausalLM, which Qwen2, Qwen2.5 and Qwen2.5-Coder checkpoints
// use: RMSNorm before attention and MLP, rotary embeddings, grouped-query
// attention with a bias on the query, key and value projections only, SwiGLU,
// and a head that the small models tie to the embedding. Where
// use_sliding_window is on, the layers from max_window_layers on see a window.
var qwen2 = family{
	architecture: "Qwen2ForCausalLM",
	qkvBias:      true,
	defaults:     `{"num_key_value_heads": 32, "rope_theta": 10000, "sliding_window": 4096, "max_window_layers": 28}`,
	slides:       qwenSlides,
	window:       qwenWindow,
}

func qwenSlides(f file, layer int) bool {
	return f.UseWindow && f.Window != nil && layer >= f.WindowLayers
}

func qwenWindow(c Config) map[string]any {
	if c.Window == 0 {
		return map[string]any{"use_sliding_window": false}
	}
	return map[string]any{"use_sliding_window": true, "sliding_window": c.Window, "layer_types": c.layerTypes()}
}
