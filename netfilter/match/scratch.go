package match

// Scratch is the room that matching needs beside keys and answers. Each worker has one, for all of its tables.
type Scratch struct {
	off  [maxGroups]Column
	mask [4]Column
	from Column
	rank Column
}

// masked are a value's columns under a mask.
func (s *Scratch) masked(c []Column, mask Value, lane []uint8) []Column {
	words := [4]uint32{uint32(mask.Hi >> 32), uint32(mask.Hi), uint32(mask.Lo >> 32), uint32(mask.Lo)}
	m := words[4-len(c):]
	for i := range c {
		from, to := &c[i], &s.mask[i]
		for _, pos := range lane {
			to[pos] = from[pos] & m[i]
		}
	}
	return s.mask[:len(c)]
}
