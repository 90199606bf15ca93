package torch

import "testing"

func TestX(t *testing.T) { t.Log(Version()) }
