package model

import (
	"bytes"
	"encoding/json"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ssr-go/ssr/kernels/torch"
)

// TestSavedCheckpointLoadsInTransformers needs a root file system with
// python3-transformers in it (docs say how to make one) and the right to chroot.
func TestSavedCheckpointLoadsInTransformers(t *testing.T) {
	root := os.Getenv("SSR_REFERENCE_ROOT")
	if root == "" {
		t.Skip("set SSR_REFERENCE_ROOT to a root file system with python3-transformers to run this")
	}
	dir, err := os.MkdirTemp(filepath.Join(root, "tmp"), "checkpoint")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	script, err := os.ReadFile("../scripts/reference/model.py")
	if err != nil {
		t.Fatal(err)
	}
	window := tiny("qwen2", false)
	window.Window, window.Sliding = 9, []bool{true, false}
	for _, c := range []Config{tiny("qwen2", true), window, tiny("qwen3", true), tiny("llama", false), tiny("mistral", false), tiny("cwm", false)} {
		for _, storage := range []torch.DType{torch.Float32, torch.BFloat16} {
			p := random(t, c, Options{})
			tokens, offsets := packed(c, 23, 9)
			if err := p.Save(dir, storage); err != nil {
				t.Fatal(err)
			}
			if storage == torch.BFloat16 {
				if err := p.LoadWeights(dir); err != nil { // its own rounding
					t.Fatal(err)
				}
			}
			want := mustLogprobs(t, p, tokens, offsets)
			sequences, _ := json.Marshal([][]int32{tokens[:23], tokens[23:]})
			if err := os.WriteFile(filepath.Join(dir, "tokens.json"), sequences, 0o644); err != nil {
				t.Fatal(err)
			}
			cmd := exec.CommandContext(t.Context(), "chroot", root, "env", "OMP_NUM_THREADS=1",
				"python3", "-", "--check", strings.TrimPrefix(dir, filepath.Clean(root)))
			var stderr bytes.Buffer
			cmd.Stdin, cmd.Stderr = bytes.NewReader(script), &stderr
			out, err := cmd.Output()
			if err != nil {
				t.Fatalf("%s %v: %v\n%s", c.ModelType, storage, err, &stderr)
			}
			var got [][]float64
			if err := json.Unmarshal(out, &got); err != nil {
				t.Fatal(err)
			}
			for i, lp := range flatten(got) {
				if math.Abs(lp-want[i]) > 2e-5 {
					t.Fatalf("%s %v, token %d: transformers says %.7g, the policy %.7g", c.ModelType, storage, i, lp, want[i])
				}
			}
		}
	}
}
