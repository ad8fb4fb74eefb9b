// Package rule is the rules of policy routing, which choose the routing table for each packet: in the kernel's
// terms, and in the words of `ip rule`.
package rule

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Rule is a rule. All its conditions must hold for a packet, or not all where Not is set. It is comparable.
type Rule struct {
	Family uint8  // 4 or 6; 0 for both
	Pref   uint32 // lower ones are asked first
	Not    bool

	From, To      netip.Prefix // zero for all
	IIF, OIF      string       // interfaces; OIF knows only packets that the box itself sends from a bound socket
	Mark, Mask    uint32       // holds where the packet's mark and Mask together are Mark
	TOS, TOSMask  uint8        // holds where the byte of IPv4's TOS or IPv6's traffic class and TOSMask together are TOS
	Proto         uint8        // IP protocol; 0 for all
	SPorts        Ports
	DPorts        Ports
	L3mdev        bool // holds for interfaces in a VRF, and Table is the VRF's
	UID           bool // holds for sockets of users UIDLo to UIDHi only; forwarded packets count as user 0's
	UIDLo, UIDHi  uint32
	TunID         uint64 // key of the tunnel that the packet came by; 0 for all
	Unknown       string // conditions that Millrace does not know, in words, so that it cannot say whether they hold
	Action        Action
	Table         uint32 // of Lookup
	Goto          uint32 // Pref of the next rule to ask, which is later than this
	SuppressBits  int    // a route of a prefix this long or shorter is taken for none; -1 for no such condition
	SuppressGroup int    // the same for a route by an interface of the group; -1 for no such condition
	Protocol      uint8  // RTPROT_*: who brought it
}

// Ports is a range of ports; the zero value holds for all.
type Ports struct{ Lo, Hi uint16 }

// Action is what a rule does with the packets that it holds for.
type Action uint8

// The actions. A packet that Lookup finds no route for goes on to the next rule.
const (
	Lookup Action = iota
	Goto
	Nop
	Blackhole
	Unreachable
	Prohibit
)

var actions = [...]string{"lookup", "goto", "nop", "blackhole", "unreachable", "prohibit"}

func (a Action) String() string { return actions[a] }

// The tables that every kernel has.
const (
	Default = 253
	Main    = 254
	Local   = 255
)

// TableName is the name that a table has everywhere, or its number.
func TableName(t uint32) string {
	switch t {
	case Default:
		return "default"
	case Main:
		return "main"
	case Local:
		return "local"
	}
	return strconv.FormatUint(uint64(t), 10)
}

// Standard are the rules of a kernel that nobody has given any.
func Standard() []Rule {
	r := func(f uint8, pref, table uint32) Rule {
		return Rule{Family: f, Pref: pref, Table: table, SuppressBits: -1, SuppressGroup: -1}
	}
	return []Rule{r(4, 0, Local), r(4, 32766, Main), r(4, 32767, Default), r(6, 0, Local), r(6, 32766, Main)}
}

var protocols = []struct {
	name string
	n    uint8
}{{"icmp", 1}, {"tcp", 6}, {"udp", 17}, {"gre", 47}, {"esp", 50}, {"ah", 51}, {"ipv6-icmp", 58}, {"ospf", 89}, {"sctp", 132}, {"udplite", 136}}

// String tells the rule as `ip rule list` does.
func (r Rule) String() string {
	var b strings.Builder
	say := func(f string, a ...any) { fmt.Fprintf(&b, f, a...) }
	say("%d: ", r.Pref)
	if r.Not {
		say("not ")
	}
	say("from %s", prefix(r.From))
	if r.To.IsValid() {
		say(" to %s", prefix(r.To))
	}
	if r.TOSMask == 0xfc && r.Family != 6 {
		say(" dscp %d", r.TOS>>2)
	} else if r.TOSMask != 0 {
		say(" tos %#x", r.TOS)
	}
	switch {
	case r.Mask == ^uint32(0):
		say(" fwmark %#x", r.Mark)
	case r.Mask != 0:
		say(" fwmark %#x/%#x", r.Mark, r.Mask)
	}
	if r.IIF != "" {
		say(" iif %s", r.IIF)
	}
	if r.OIF != "" {
		say(" oif %s", r.OIF)
	}
	if r.UID {
		say(" uidrange %d-%d", r.UIDLo, r.UIDHi)
	}
	if r.Proto != 0 {
		say(" ipproto %s", protoName(r.Proto))
	}
	r.SPorts.say(&b, "sport")
	r.DPorts.say(&b, "dport")
	if r.TunID != 0 {
		say(" tun_id %d", r.TunID)
	}
	if r.Unknown != "" {
		say(" (%s)", r.Unknown)
	}
	switch {
	case r.Action == Goto:
		say(" goto %d", r.Goto)
	case r.Action != Lookup:
		say(" %s", r.Action)
	case r.L3mdev:
		say(" lookup [l3mdev-table]")
	default:
		say(" lookup %s", TableName(r.Table))
	}
	if r.SuppressBits >= 0 {
		say(" suppress_prefixlength %d", r.SuppressBits)
	}
	if r.SuppressGroup >= 0 {
		say(" suppress_ifgroup %d", r.SuppressGroup)
	}
	return b.String()
}

func (p Ports) say(b *strings.Builder, word string) {
	switch {
	case p == Ports{}:
	case p.Lo == p.Hi:
		fmt.Fprintf(b, " %s %d", word, p.Lo)
	default:
		fmt.Fprintf(b, " %s %d-%d", word, p.Lo, p.Hi)
	}
}

func prefix(p netip.Prefix) string {
	switch {
	case !p.IsValid():
		return "all"
	case p.IsSingleIP():
		return p.Addr().String()
	}
	return p.String()
}

func protoName(n uint8) string {
	for _, p := range protocols {
		if p.n == n {
			return p.name
		}
	}
	return strconv.Itoa(int(n))
}
