package gen

import (
	"crypto/sha256"
	"encoding/binary"
	"math/bits"
)

// Stream gives the random draws of one trajectory as a function of position
// alone, so that a draw does not depend on what else is generated, in which
// order, or how often a turn was interrupted.
type Stream struct{ seed, id uint64 }

// NewStream is the stream of the trajectory named id in the run with that seed.
func NewStream(seed uint64, id string) Stream {
	sum := sha256.Sum256([]byte(id))
	return Stream{seed, binary.LittleEndian.Uint64(sum[:])}
}

// Uniform is the draw for the token at an absolute position, in [0, 1) with 53 bits.
func (s Stream) Uniform(position int) float64 {
	r := philox(
		[4]uint32{uint32(s.id), uint32(s.id >> 32), uint32(position), uint32(uint64(position) >> 32)},
		[2]uint32{uint32(s.seed), uint32(s.seed >> 32)},
	)
	return float64((uint64(r[0])<<32|uint64(r[1]))>>11) / (1 << 53)
}

// philox is Philox4x32-10: Salmon et al., "Parallel random numbers: as easy as
// 1, 2, 3" (SC 2011).
func philox(c [4]uint32, k [2]uint32) [4]uint32 {
	for range 10 {
		h0, l0 := bits.Mul32(0xD2511F53, c[0])
		h1, l1 := bits.Mul32(0xCD9E8D57, c[2])
		c = [4]uint32{h1 ^ c[1] ^ k[0], l1, h0 ^ c[3] ^ k[1], l0}
		k[0] += 0x9E3779B9
		k[1] += 0xBB67AE85
	}
	return c
}
