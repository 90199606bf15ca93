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

// reference is a folder that transformers can read; it needs a root file system
// with python3-transformers in it (docs say how to make one) and the right to chroot.
type reference struct {
	t         *testing.T
	root, dir string
}

func newReference(t *testing.T) reference {
	root := os.Getenv("SSR_REFERENCE_ROOT")
	if root == "" {
		t.Skip("set SSR_REFERENCE_ROOT to a root file system with python3-transformers to run this")
	}
	dir, err := os.MkdirTemp(filepath.Join(root, "tmp"), "checkpoint")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return reference{t, root, dir}
}

// logprobs are what transformers makes of the checkpoint in the folder, under the
// adapter in it where one is named.
func (r reference) logprobs(adapter string, sequences ...[]int32) []float64 {
	script, err := os.ReadFile("../scripts/reference/model.py")
	if err != nil {
		r.t.Fatal(err)
	}
	data, _ := json.Marshal(sequences)
	if err := os.WriteFile(filepath.Join(r.dir, "tokens.json"), data, 0o644); err != nil {
		r.t.Fatal(err)
	}
	inside := strings.TrimPrefix(r.dir, filepath.Clean(r.root))
	args := []string{r.root, "env", "OMP_NUM_THREADS=1", "python3", "-", "--check", inside}
	if adapter != "" {
		args = append(args, inside+"/"+adapter)
	}
	cmd := exec.CommandContext(r.t.Context(), "chroot", args...)
	var stderr bytes.Buffer
	cmd.Stdin, cmd.Stderr = bytes.NewReader(script), &stderr
	out, err := cmd.Output()
	if err != nil {
		r.t.Fatalf("%v\n%s", err, &stderr)
	}
	var got [][]float64
	if err := json.Unmarshal(out, &got); err != nil {
		r.t.Fatal(err)
	}
	return flatten(got)
}

func TestSavedCheckpointLoadsInTransformers(t *testing.T) {
	r := newReference(t)
	window := tiny("qwen2", false)
	window.Window, window.Sliding = 9, []bool{true, false}
	for _, c := range []Config{tiny("qwen2", true), window, tiny("qwen3", true), tiny("llama", false), tiny("mistral", false), tiny("cwm", false)} {
		for _, storage := range []torch.DType{torch.Float32, torch.BFloat16} {
			p := random(t, c, Options{})
			tokens, offsets := packed(c, 23, 9)
			if err := p.Save(r.dir, storage); err != nil {
				t.Fatal(err)
			}
			if storage == torch.BFloat16 {
				if err := p.LoadWeights(r.dir); err != nil { // its own rounding
					t.Fatal(err)
				}
			}
			want := mustLogprobs(t, p, tokens, offsets)
			for i, lp := range r.logprobs("", tokens[:23], tokens[23:]) {
				if math.Abs(lp-want[i]) > 2e-5 {
					t.Fatalf("%s %v, token %d: transformers says %.7g, the policy %.7g", c.ModelType, storage, i, lp, want[i])
				}
			}
		}
	}
}

// TestAdapterInPEFTsFormat: transformers' modules with the saved adapter computed
// beside them, as PEFT documents it, say what the policy says with it merged.
func TestAdapterInPEFTsFormat(t *testing.T) {
	r := newReference(t)
	for _, c := range []Config{tiny("qwen2", true), tiny("llama", false)} {
		for _, o := range []Options{
			{LoRA: &LoRA{Rank: 3, Alpha: 5}},
			{LoRA: &LoRA{Rank: 2, Targets: []string{"q_proj", "v_proj"}}, FreezeLayers: 1},
		} {
			p := adapted(t, c, o, r.dir)
			if err := p.SaveAdapter(filepath.Join(r.dir, "adapter"), "base"); err != nil {
				t.Fatal(err)
			}
			tokens, offsets := packed(c, 23, 9)
			want := mustLogprobs(t, p, tokens, offsets)
			for i, lp := range r.logprobs("adapter", tokens[:23], tokens[23:]) {
				if math.Abs(lp-want[i]) > 2e-5 {
					t.Fatalf("%s, token %d: unmerged %.7g, the policy %.7g", c.ModelType, i, lp, want[i])
				}
			}
		}
	}
}
