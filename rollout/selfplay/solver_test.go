package selfplay

import (
	"encoding/json"
	"testing"

	"github.com/ssr-go/ssr/rollout"
)

// TestPatchIsJournaledByteForByte: a policy writes bytes that are no UTF-8, and
// a resumed step must make the same second-order bugs of them.
func TestPatchIsJournaledByteForByte(t *testing.T) {
	for patch, want := range map[PatchText]string{
		"":                   `""`,
		"+naïve < \u2028\n":  "\"+naïve \\u003c \\u2028\\n\"",
		"+room = \xff\xfe\n": `{"base64":"K3Jvb20gPSD//go="}`,
	} {
		data, err := json.Marshal(patch)
		if err != nil || string(data) != want {
			t.Errorf("%q became %s, %v, want %s", patch, data, err, want)
		}
		data, err = json.Marshal(&rollout.Trajectory{Detail: SolverDetail{Patch: patch}})
		if err != nil {
			t.Fatal(err)
		}
		var back rollout.Trajectory
		if err := json.Unmarshal(data, &back); err != nil {
			t.Fatal(err)
		}
		if d, err := DetailOf[SolverDetail](&back); err != nil || d.Patch != patch {
			t.Errorf("%q came back as %q, %v", patch, d.Patch, err)
		}
	}
}
