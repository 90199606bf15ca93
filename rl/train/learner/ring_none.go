//go:build !gpu

package learner

import "errors"

var errNoCUDA = errors.New("this program was built without CUDA; build it with make CUDA=1")

func newRing([]int) (ring, error) { return nil, errNoCUDA }
func newRingID() ([]byte, error)  { return nil, errNoCUDA }

func joinRing([]byte, int, int, int) (ring, error) { return nil, errNoCUDA }
