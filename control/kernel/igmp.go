package kernel

import (
	"bytes"
	"encoding/hex"
	"net/netip"
	"strconv"
)

// parseIGMP reads /proc/net/igmp: a line for each interface, beginning with its index, and below it one for each group, in
// hexadecimal as a 32-bit word of memory.
func parseIGMP(m map[int][]netip.Addr, b []byte) {
	index := 0
	for line := range bytes.Lines(b) {
		f := bytes.Fields(line)
		if len(f) == 0 {
			continue
		}
		if line[0] != '\t' && line[0] != ' ' {
			index, _ = strconv.Atoi(string(f[0]))
			continue
		}
		n, err := strconv.ParseUint(string(f[0]), 16, 32)
		if err != nil || index == 0 {
			continue
		}
		var a [4]byte
		native.PutUint32(a[:], uint32(n))
		if a[0] != 224 || a[1] != 0 || a[2] != 0 {
			m[index] = append(m[index], netip.AddrFrom4(a))
		}
	}
}

// parseIGMP6 reads /proc/net/igmp6: index, name, group and more on each line.
func parseIGMP6(m map[int][]netip.Addr, b []byte) {
	for line := range bytes.Lines(b) {
		f := bytes.Fields(line)
		if len(f) < 3 {
			continue
		}
		index, err := strconv.Atoi(string(f[0]))
		var a [16]byte
		if n, herr := hex.Decode(a[:], f[2][:min(32, len(f[2]))]); err != nil || herr != nil || n != 16 {
			continue
		}
		if a[1]&15 > 2 {
			m[index] = append(m[index], netip.AddrFrom16(a))
		}
	}
}
