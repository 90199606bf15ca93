package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ssr-go/ssr/kernels/torch"
	"github.com/ssr-go/ssr/model"
	"github.com/ssr-go/ssr/model/token"
)

// policy is the one bundled with the library, which earns rewards to learn from,
// or a fresh one.
func policy(t *testing.T, repo string) string {
	t.Helper()
	const bundled = "../../testdata/policy"
	if _, err := os.Stat(filepath.Join(bundled, "config.json")); err == nil {
		return bundled
	}
	t.Log("no bundled policy: a fresh one plays, and gets no reward to learn from")
	return freshModel(t, repo)
}

// freshModel writes a very small policy that knows nothing, with a tokenizer of
// the repository's text.
func freshModel(t *testing.T, repo string) string {
	t.Helper()
	var corpus []string
	files, err := filepath.Glob(filepath.Join(repo, "quill", "*.py"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		corpus = append(corpus, string(text))
	}
	tokenizer, err := token.Train(corpus, token.TrainOptions{VocabSize: 512, Specials: token.ChatMLSpecials})
	if err != nil {
		t.Fatal(err)
	}
	config := model.Config{
		ModelType: "qwen2", VocabSize: tokenizer.VocabSize(), Hidden: 32, Intermediate: 64, Layers: 2,
		Heads: 2, KVHeads: 1, HeadDim: 16, MaxPositions: 4096, RopeTheta: 10000, NormEps: 1e-6, TieEmbeddings: true, BOS: -1,
	}
	policy, err := model.New(config, 1, model.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer policy.Close()
	dir := t.TempDir()
	if err := policy.Save(dir, torch.Float32); err != nil {
		t.Fatal(err)
	}
	if err := tokenizer.Save(dir); err != nil {
		t.Fatal(err)
	}
	return dir
}

func call(t *testing.T, method, url, body string, status int) []byte {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	data, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	if response.StatusCode != status {
		t.Fatalf("%s %s: status %d, want %d: %s", method, url, response.StatusCode, status, data)
	}
	return data
}

// await polls a run until it has ended.
func await(t *testing.T, url string) Progress {
	t.Helper()
	deadline := time.Now().Add(4 * time.Minute)
	for time.Now().Before(deadline) {
		var p Progress
		if err := json.Unmarshal(call(t, "GET", url, "", http.StatusOK), &p); err != nil {
			t.Fatal(err)
		}
		if p.State != "running" {
			return p
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatal("the run did not end")
	return Progress{}
}

// TestService trains two steps of the real game through the service.
func TestService(t *testing.T) {
	repo := filepath.Join(t.TempDir(), "quill")
	if out, err := exec.CommandContext(t.Context(), "../../scripts/make-world.sh", repo, "quill").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	runs := t.TempDir()
	service := NewService(t.Context(), runs)
	server := httptest.NewServer(service)
	t.Cleanup(server.Close)

	call(t, "GET", server.URL+"/runs/1", "", http.StatusNotFound)
	call(t, "POST", server.URL+"/runs", `{"steps": 1}`, http.StatusBadRequest)
	job := fmt.Sprintf(`{"repo": %q, "model": %q, "steps": 2, "seed": 7}`, repo, policy(t, repo))
	call(t, "POST", server.URL+"/runs", job, http.StatusAccepted)
	p := await(t, server.URL+"/runs/1")
	if p.State != "done" || p.Step != 2 || p.Last == nil {
		t.Fatalf("progress at the end: %+v", p)
	}
	t.Logf("after two steps: version %d, %d tokens trained on in the last", p.Last.Version, p.Last.TrainedTokens)
	if p.Last.SampledTokens == 0 || p.Last.Roles["injector"].Episodes != 4 {
		t.Errorf("metrics of the last step: %+v", p.Last.PlayMetrics)
	}
	trained, err := model.Load(p.Weights, model.Options{})
	if err != nil {
		t.Fatal(err)
	}
	trained.Close()

	// A run that is told to stop ends as stopped, and the service with it.
	call(t, "POST", server.URL+"/runs", strings.Replace(job, `"steps": 2`, `"steps": 1000`, 1), http.StatusAccepted)
	call(t, "DELETE", server.URL+"/runs/2", "", http.StatusNoContent)
	if p := await(t, server.URL+"/runs/2"); p.State != "stopped" {
		t.Errorf("a stopped run says %+v", p)
	}
	service.Wait()
}
