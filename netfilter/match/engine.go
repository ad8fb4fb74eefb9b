package match

// engine is a way to find the first rule that matches.
type engine interface {
	// find writes, for the positions of a lane, the first rule that matches, or None. Where from is not nil, only rules from the one that it
	// has at the position on count; None there gives None.
	find(k Keys, lane []uint8, from, out *Column, s *Scratch)
	close()
}
