package gen

import (
	"fmt"
	"math"
	"testing"
)

// The known answers are those published with the Random123 library.
func TestPhiloxKnownAnswers(t *testing.T) {
	const f = 0xffffffff
	for _, c := range []struct {
		counter [4]uint32
		key     [2]uint32
		want    [4]uint32
	}{
		{[4]uint32{}, [2]uint32{}, [4]uint32{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
		{[4]uint32{f, f, f, f}, [2]uint32{f, f}, [4]uint32{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
		{
			[4]uint32{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
			[2]uint32{0xa4093822, 0x299f31d0},
			[4]uint32{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1},
		},
	} {
		if got := philox(c.counter, c.key); got != c.want {
			t.Errorf("philox(%x, %x) = %x, want %x", c.counter, c.key, got, c.want)
		}
	}
}

func TestUniform(t *testing.T) {
	const n = 20000
	for _, s := range []Stream{NewStream(0, ""), NewStream(1, "a"), NewStream(1<<63, "b")} {
		var sum, squares, serial, last float64
		for i := range n {
			u := s.Uniform(i)
			if u < 0 || u >= 1 || u != s.Uniform(i) {
				t.Fatalf("draw %d is %v", i, u)
			}
			sum += u
			squares += u * u
			serial += (u - 0.5) * (last - 0.5)
			last = u
		}
		// Five standard errors of each moment.
		if d := math.Abs(sum/n - 0.5); d > 5*math.Sqrt(1.0/12/n) {
			t.Errorf("mean is off by %v", d)
		}
		if d := math.Abs(squares/n - 1.0/3); d > 5*math.Sqrt(4.0/45/n) {
			t.Errorf("second moment is off by %v", d)
		}
		if d := math.Abs(serial / n); d > 5/12.0/math.Sqrt(n) {
			t.Errorf("neighbours correlate by %v", d)
		}
	}
}

func TestStreamsDiffer(t *testing.T) {
	seen := map[float64]string{}
	for seed := range uint64(20) {
		for id := range 20 {
			for pos := range 20 {
				name := fmt.Sprint(seed, "/", id, "/", pos)
				u := NewStream(seed, fmt.Sprint(id)).Uniform(pos)
				if other, ok := seen[u]; ok {
					t.Fatalf("%s and %s draw %v both", name, other, u)
				}
				seen[u] = name
			}
		}
	}
}
