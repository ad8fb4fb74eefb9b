package afxdp

import (
	"errors"
	"net/netip"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"

	"millrace/pmd"
)

// SetGroups implements pmd.GroupFilter. Groups that stay are never missing in between, and keep
// the time at which the kernel had a packet.
func (p *Port) SetGroups(groups []pmd.Group) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return p.err("closed")
	}
	want := make(map[groupKey]groupState, len(groups))
	for _, g := range groups {
		if !g.Group.IsMulticast() || g.Source.IsValid() && g.Source.Is4() != g.Group.Is4() {
			return p.err("multicast to %v from %v: not a group, or not a source of it", g.Group, g.Source)
		}
		k := groupKey{Group: g.Group.As16(), Outer: [2]byte{byte(g.Outer >> 8), byte(g.Outer)}, Inner: [2]byte{byte(g.Inner >> 8), byte(g.Inner)}}
		if g.Source.IsValid() {
			k.Source = g.Source.As16()
		}
		s := groupState{What: groupTake}
		switch {
		case g.Pass:
			s.What = groupPass
		case g.Sample:
			s.What = groupSample
		}
		want[k] = s
	}
	if len(want) > maxGroups {
		return p.err("%d multicast groups are more than the filter's %d", len(want), maxGroups)
	}
	var old []groupKey
	var k groupKey
	var s groupState
	for it := p.maps.group.Iterate(); it.Next(&k, &s); {
		if w, stays := want[k]; !stays {
			old = append(old, k)
		} else if w.What == s.What {
			delete(want, k)
		}
	}
	for _, k := range old {
		if err := p.maps.group.Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return p.err("multicast group %v: %w", netip.AddrFrom16(k.Group).Unmap(), err)
		}
	}
	for k, s := range want {
		if err := p.maps.group.Put(k, s); err != nil {
			return p.err("multicast group %v: %w", netip.AddrFrom16(k.Group).Unmap(), err)
		}
	}
	return nil
}

// Places on the stack of a groupKey.
const (
	gKey    = -40
	gSource = gKey + 16
	gOuter  = gKey + 32
	gInner  = gKey + 34
)

// groups judges a frame to a group of stations: registers as in program.
func (m *maps) groups() asm.Instructions {
	p := asm.Instructions{
		asm.Mov.Imm(asm.R2, 0).WithSymbol("groups"),
		asm.StoreMem(asm.RFP, gOuter, asm.R2, asm.DWord),
		asm.LoadMem(asm.R2, asm.R7, 12, asm.Half),
	}
	const depths = 3 // no tag, one, two
	for d := range depths {
		off := int32(14 + 4*d)
		p = append(p,
			asm.JEq.Imm(asm.R2, be(unix.ETH_P_IP), label("group4", d)),
			asm.JEq.Imm(asm.R2, be(unix.ETH_P_IPV6), label("group6", d)))
		if d == depths-1 {
			break
		}
		// The id of a tag that is alone is the outer one.
		p = append(p,
			asm.JEq.Imm(asm.R2, be(unix.ETH_P_8021Q), label("gtag", d)),
			asm.JNE.Imm(asm.R2, be(unix.ETH_P_8021AD), "pass"),
			asm.Mov.Reg(asm.R2, asm.R7).WithSymbol(label("gtag", d)),
			asm.Add.Imm(asm.R2, off+4),
			asm.JGT.Reg(asm.R2, asm.R8, "pass"),
			asm.LoadMem(asm.R2, asm.R7, int16(off), asm.Half),
			asm.And.Imm(asm.R2, be(0x0fff)),
			asm.StoreMem(asm.RFP, int16(gOuter+2*d), asm.R2, asm.Half),
			asm.LoadMem(asm.R2, asm.R7, int16(off+2), asm.Half))
	}
	p = append(p, asm.Ja.Label("pass"))
	for d := range depths {
		off := int16(14 + 4*d)
		p = append(p,
			asm.Mov.Reg(asm.R2, asm.R7).WithSymbol(label("group4", d)),
			asm.Add.Imm(asm.R2, int32(off)+20),
			asm.JGT.Reg(asm.R2, asm.R8, "pass"),
			asm.LoadMem(asm.R2, asm.R7, off+8, asm.Byte),
			asm.JLE.Imm(asm.R2, 1, "pass"), // TTL
			asm.LoadMem(asm.R2, asm.R7, off+9, asm.Byte),
			asm.JEq.Imm(asm.R2, unix.IPPROTO_IGMP, "pass"),
			asm.Mov.Imm(asm.R3, 0),
			asm.LoadImm(asm.R4, 0xffff0000, asm.DWord), // ::ffff:a.b.c.d, in the order of memory
			asm.StoreMem(asm.RFP, gKey, asm.R3, asm.DWord),
			asm.LoadMem(asm.R2, asm.R7, off+16, asm.Word),
			asm.LSh.Imm(asm.R2, 32),
			asm.Or.Reg(asm.R2, asm.R4),
			asm.StoreMem(asm.RFP, gKey+8, asm.R2, asm.DWord),
			asm.StoreMem(asm.RFP, gSource, asm.R3, asm.DWord),
			asm.LoadMem(asm.R2, asm.R7, off+12, asm.Word),
			asm.LSh.Imm(asm.R2, 32),
			asm.Or.Reg(asm.R2, asm.R4),
			asm.StoreMem(asm.RFP, gSource+8, asm.R2, asm.DWord),
			asm.Ja.Label("group"),

			asm.Mov.Reg(asm.R2, asm.R7).WithSymbol(label("group6", d)),
			asm.Add.Imm(asm.R2, int32(off)+40),
			asm.JGT.Reg(asm.R2, asm.R8, "pass"),
			asm.LoadMem(asm.R2, asm.R7, off+7, asm.Byte),
			asm.JLE.Imm(asm.R2, 1, "pass"), // hop limit
			asm.LoadMem(asm.R2, asm.R7, off+6, asm.Byte),
			asm.JEq.Imm(asm.R2, unix.IPPROTO_ICMPV6, "pass"))
		for k, at := range []int16{24, 32, 8, 16} { // destination, source
			p = append(p,
				asm.LoadMem(asm.R2, asm.R7, off+at, asm.DWord),
				asm.StoreMem(asm.RFP, int16(gKey+8*k), asm.R2, asm.DWord))
		}
		p = append(p, asm.Ja.Label("group"))
	}
	l := lookup(m.group, gKey)
	l[0] = l[0].WithSymbol("group")
	p = append(p, l...)
	p = append(p,
		asm.JNE.Imm(asm.R0, 0, "member"),
		asm.StoreMem(asm.RFP, gSource, asm.R0, asm.DWord), // from any source? R0 is 0
		asm.StoreMem(asm.RFP, gSource+8, asm.R0, asm.DWord))
	p = append(p, lookup(m.group, gKey)...)
	return append(p,
		asm.JEq.Imm(asm.R0, 0, "pass"),
		asm.LoadMem(asm.R2, asm.R0, 0, asm.DWord).WithSymbol("member"),
		asm.JEq.Imm(asm.R2, groupTake, "take"),
		asm.JEq.Imm(asm.R2, groupPass, "pass"),
		asm.Mov.Reg(asm.R9, asm.R0),
		asm.FnKtimeGetNs.Call(),
		asm.LoadMem(asm.R2, asm.R9, 8, asm.DWord),
		asm.Add.Imm(asm.R2, sampleNs),
		asm.JLT.Reg(asm.R0, asm.R2, "take"),
		asm.StoreMem(asm.R9, 8, asm.R0, asm.DWord),
		asm.Ja.Label("pass"))
}
