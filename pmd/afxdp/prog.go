package afxdp

import (
	"encoding/binary"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"
)

const (
	xdpHasFrags   = 1 << 5 // BPF_F_XDP_HAS_FRAGS
	noPrealloc    = 1      // BPF_F_NO_PREALLOC
	xdpPass       = 2      // XDP_PASS
	maxAddrs      = 16384  // of the box, of each family
	maxEtherTypes = 64
	maxTaken      = 1 << 18 // entries of each family: four blocks of 65536 NAT ports
	maxGroups     = 1 << 15 // sources and groups of both families
	sampleNs      = 1e9     // between two packets of a group for the kernel
)

// maps are what the XDP program reads.
type maps struct {
	xsks  *ebpf.Map // rx queue -> AF_XDP socket
	port  *ebpf.Map // [0] = the port's MAC in 8 bytes
	v4    *ebpf.Map // the box's IPv4 addresses
	v6    *ebpf.Map // the box's IPv6 addresses
	types *ebpf.Map // further EtherTypes for Millrace, as they lie in a frame
	own4  *ebpf.Map // taken4: what Millrace takes of the box's IPv4 addresses
	own6  *ebpf.Map // taken6
	group *ebpf.Map // groupKey -> groupState: multicast for Millrace
}

// taken4 and taken6 are keys of own4 and own6: port 0 is a whole protocol.
type taken4 struct {
	Addr  [4]byte
	Proto uint8
	_     uint8
	Port  [2]byte // big endian
}

type taken6 struct {
	Addr  [16]byte
	Proto uint8
	_     uint8
	Port  [2]byte // big endian
	_     [4]byte
}

// groupKey is a key of group, of both families: IPv4 addresses are mapped into IPv6's, as fib/mcast has them.
type groupKey struct {
	Group, Source [16]byte // no source is all zero
	Outer, Inner  [2]byte  // VLAN ids, big endian
	_             [4]byte
}

// groupState is what is known of one.
type groupState struct {
	What uint64
	Last uint64 // when the kernel got a packet, by bpf_ktime_get_ns; written by the program
}

// What becomes of a group's packets.
const (
	groupTake   = iota // they come to Millrace
	groupSample        // but for one a second
	groupPass          // they pass to the kernel
)

func newMaps(queues int) (m maps, err error) {
	for _, s := range []struct {
		to   **ebpf.Map
		spec ebpf.MapSpec
	}{
		{&m.xsks, ebpf.MapSpec{Name: "mr_xsks", Type: ebpf.XSKMap, KeySize: 4, ValueSize: 4, MaxEntries: uint32(queues)}},
		{&m.port, ebpf.MapSpec{Name: "mr_port", Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1}},
		{&m.v4, ebpf.MapSpec{Name: "mr_local4", Type: ebpf.Hash, KeySize: 4, ValueSize: 1, MaxEntries: maxAddrs, Flags: noPrealloc}},
		{&m.v6, ebpf.MapSpec{Name: "mr_local6", Type: ebpf.Hash, KeySize: 16, ValueSize: 1, MaxEntries: maxAddrs, Flags: noPrealloc}},
		{&m.types, ebpf.MapSpec{Name: "mr_types", Type: ebpf.Hash, KeySize: 4, ValueSize: 1, MaxEntries: maxEtherTypes, Flags: noPrealloc}},
		{&m.own4, ebpf.MapSpec{Name: "mr_own4", Type: ebpf.Hash, KeySize: 8, ValueSize: 1, MaxEntries: maxTaken, Flags: noPrealloc}},
		{&m.own6, ebpf.MapSpec{Name: "mr_own6", Type: ebpf.Hash, KeySize: 24, ValueSize: 1, MaxEntries: maxTaken, Flags: noPrealloc}},
		{&m.group, ebpf.MapSpec{Name: "mr_groups", Type: ebpf.Hash, KeySize: 40, ValueSize: 16, MaxEntries: maxGroups, Flags: noPrealloc}},
	} {
		if *s.to, err = ebpf.NewMap(&s.spec); err != nil {
			m.close()
			return m, fmt.Errorf("make BPF map %s: %w", s.spec.Name, err)
		}
	}
	return m, nil
}

func (m *maps) close() {
	for _, x := range []*ebpf.Map{m.xsks, m.port, m.v4, m.v6, m.types, m.own4, m.own6, m.group} {
		x.Close()
	}
}

// load loads the filter, or the program that takes the whole traffic, aware of multi-buffer packets where
// the kernel knows them.
func (m *maps) load(whole bool) (p *ebpf.Program, frags bool, err error) {
	spec := &ebpf.ProgramSpec{
		Name: "millrace", Type: ebpf.XDP, License: "Dual BSD/GPL",
		Instructions: m.program(), Flags: xdpHasFrags,
	}
	if whole {
		spec.Instructions = append(asm.Instructions{asm.Mov.Reg(asm.R6, asm.R1)}, m.take()...)
	}
	if p, err = ebpf.NewProgram(spec); err == nil {
		return p, true, nil
	}
	first := err
	spec.Flags = 0
	if p, err = ebpf.NewProgram(spec); err != nil {
		return nil, false, fmt.Errorf("load XDP program: %w", first)
	}
	return p, false, nil
}

// be is the value that a BPF load finds where the big-endian v lies.
func be(v uint16) int32 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], v)
	return int32(binary.NativeEndian.Uint16(b[:]))
}

// program is the filter. Registers: R6 context, R7 data, R8 end of the linear data,
// R2 the EtherType at each depth of tags. Packets whose headers are not all in the linear
// data pass to the kernel.
func (m *maps) program() asm.Instructions {
	p := asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.LoadMem(asm.R7, asm.R6, 0, asm.Word), // xdp_md.data
		asm.LoadMem(asm.R8, asm.R6, 4, asm.Word), // xdp_md.data_end
		asm.Mov.Reg(asm.R2, asm.R7),
		asm.Add.Imm(asm.R2, 14),
		asm.JGT.Reg(asm.R2, asm.R8, "pass"),
		// Only frames to the port's own MAC, and those to groups.
		asm.LoadMem(asm.R4, asm.R7, 0, asm.Byte),
		asm.And.Imm(asm.R4, 1),
		asm.JNE.Imm(asm.R4, 0, "groups"),
		asm.LoadMapValue(asm.R3, m.port.FD(), 0),
		asm.LoadMem(asm.R4, asm.R7, 0, asm.Word),
		asm.LoadMem(asm.R5, asm.R3, 0, asm.Word),
		asm.JNE.Reg(asm.R4, asm.R5, "pass"),
		asm.LoadMem(asm.R4, asm.R7, 4, asm.Half),
		asm.LoadMem(asm.R5, asm.R3, 4, asm.Half),
		asm.JNE.Reg(asm.R4, asm.R5, "pass"),
		asm.LoadMem(asm.R2, asm.R7, 12, asm.Half),
	}
	const depths = 3 // no tag, one, two
	for d := range depths {
		off := int32(14 + 4*d)
		p = append(p,
			asm.JEq.Imm(asm.R2, be(unix.ETH_P_IP), label("ip4", d)),
			asm.JEq.Imm(asm.R2, be(unix.ETH_P_IPV6), label("ip6", d)))
		if d == depths-1 {
			break
		}
		p = append(p,
			asm.JEq.Imm(asm.R2, be(unix.ETH_P_8021Q), label("tag", d)),
			asm.JNE.Imm(asm.R2, be(unix.ETH_P_8021AD), "other"),
			asm.Mov.Reg(asm.R2, asm.R7).WithSymbol(label("tag", d)),
			asm.Add.Imm(asm.R2, off+4),
			asm.JGT.Reg(asm.R2, asm.R8, "pass"),
			asm.LoadMem(asm.R2, asm.R7, int16(off+2), asm.Half))
	}
	p = append(p,
		// Falls through with an EtherType that is not IP.
		asm.StoreMem(asm.RFP, -4, asm.R2, asm.Word).WithSymbol("other"))
	p = append(p, lookup(m.types, -4)...)
	p = append(p, asm.JEq.Imm(asm.R0, 0, "pass"), asm.Ja.Label("take"))
	for d := range depths {
		p = append(p, m.ip4(d)...)
		p = append(p, m.ip6(d)...)
	}
	p = append(p, m.groups()...)
	return append(append(p, m.take()...),
		asm.Mov.Imm(asm.R0, xdpPass).WithSymbol("pass"),
		asm.Return())
}

// take gives the packet to the queue's socket.
func (m *maps) take() asm.Instructions {
	return asm.Instructions{
		asm.Mov.Imm(asm.R3, xdpPass).WithSymbol("take"), // what becomes of it where the queue has no socket
		asm.LoadMapPtr(asm.R1, m.xsks.FD()),
		asm.LoadMem(asm.R2, asm.R6, 16, asm.Word), // xdp_md.rx_queue_index
		asm.FnRedirectMap.Call(),
		asm.Return(),
	}
}

// ip4 judges an IPv4 packet behind d tags.
func (m *maps) ip4(d int) asm.Instructions {
	off := int16(14 + 4*d)
	look := label("look4", d)
	p := asm.Instructions{
		asm.Mov.Reg(asm.R2, asm.R7).WithSymbol(label("ip4", d)),
		asm.Add.Imm(asm.R2, int32(off)+20),
		asm.JGT.Reg(asm.R2, asm.R8, "pass"),
		asm.LoadMem(asm.R2, asm.R7, off+16, asm.Word), // destination
		asm.StoreMem(asm.RFP, -8, asm.R2, asm.Word),
		asm.LoadMem(asm.R3, asm.R7, off+16, asm.Byte),
		asm.And.Imm(asm.R3, 0xf0),
		asm.JEq.Imm(asm.R3, 0xe0, "pass"), // multicast
		asm.JEq.Imm32(asm.R2, -1, "pass"), // broadcast
		asm.LoadMem(asm.R3, asm.R7, off+9, asm.Byte),
		asm.JNE.Imm(asm.R3, unix.IPPROTO_UDP, look),
		// A DHCP offer comes to an address that the box does not have yet; the client's hardware
		// address in it tells it from one in transit.
		asm.LoadMem(asm.R3, asm.R7, off, asm.Byte),
		asm.JNE.Imm(asm.R3, 0x45, look),
		asm.Mov.Reg(asm.R2, asm.R7),
		asm.Add.Imm(asm.R2, int32(off)+62),
		asm.JGT.Reg(asm.R2, asm.R8, look),
		asm.LoadMem(asm.R3, asm.R7, off+22, asm.Half),
		asm.JNE.Imm(asm.R3, be(68), look),
		asm.LoadMem(asm.R3, asm.R7, off+56, asm.Word), // chaddr
		asm.LoadMem(asm.R4, asm.R7, 0, asm.Word),
		asm.JNE.Reg(asm.R3, asm.R4, look),
		asm.LoadMem(asm.R3, asm.R7, off+60, asm.Half),
		asm.LoadMem(asm.R4, asm.R7, 4, asm.Half),
		asm.JEq.Reg(asm.R3, asm.R4, "pass"),
	}
	l := lookup(m.v4, -8)
	l[0] = l[0].WithSymbol(look)
	p = append(p, l...)
	p = append(p,
		asm.JEq.Imm(asm.R0, 0, "take"),
		// The box's own: what of it is Millrace's?
		asm.LoadMem(asm.R2, asm.R7, off+9, asm.Byte),
		asm.StoreMem(asm.RFP, -4, asm.R2, asm.Half), // protocol and a zero
		asm.StoreImm(asm.RFP, -2, 0, asm.Half))
	p = append(p, lookup(m.own4, -8)...)
	p = append(p,
		asm.JNE.Imm(asm.R0, 0, "take"),
		asm.LoadMem(asm.R2, asm.R7, off+6, asm.Half),
		asm.And.Imm(asm.R2, be(0x3fff)),
		asm.JNE.Imm(asm.R2, 0, "pass"), // a fragment
		asm.LoadMem(asm.R3, asm.R7, off+9, asm.Byte),
		asm.JEq.Imm(asm.R3, unix.IPPROTO_ICMP, label("icmp4", d)),
		asm.LoadMem(asm.R2, asm.R7, off, asm.Byte),
		asm.And.Imm(asm.R2, 15),
		asm.LSh.Imm(asm.R2, 2),
		asm.Add.Imm(asm.R2, int32(off)),
		asm.Add.Reg(asm.R2, asm.R7))
	p = append(p, m.ports(m.own4, -8, -2, label("port4", d))...)
	return append(p, m.icmp4(d)...)
}

// icmp4 judges an ICMP message to one of the box's addresses: an echo reply by its identifier, an error by
// the packet in it, which the address's user sent.
func (m *maps) icmp4(d int) asm.Instructions {
	off := int16(14 + 4*d)
	fault, inner, key := label("fault4", d), label("inner4", d), label("key4", d)
	p := asm.Instructions{
		asm.LoadMem(asm.R2, asm.R7, off, asm.Byte).WithSymbol(label("icmp4", d)),
		asm.JNE.Imm(asm.R2, 0x45, "pass"),
		asm.Mov.Reg(asm.R2, asm.R7),
		asm.Add.Imm(asm.R2, int32(off)+28),
		asm.JGT.Reg(asm.R2, asm.R8, "pass"),
		asm.LoadMem(asm.R2, asm.R7, off+20, asm.Byte),
		asm.JNE.Imm(asm.R2, 0, fault), // not an echo reply
		asm.LoadMem(asm.R2, asm.R7, off+24, asm.Half),
		asm.Ja.Label(key),
		asm.JEq.Imm(asm.R2, 3, inner).WithSymbol(fault), // unreachable
		asm.JEq.Imm(asm.R2, 11, inner),                  // time exceeded
		asm.JNE.Imm(asm.R2, 12, "pass"),                 // parameter problem
		asm.Mov.Reg(asm.R2, asm.R7).WithSymbol(inner),
		asm.Add.Imm(asm.R2, int32(off)+56), // 8 bytes behind the inner header (RFC 792)
		asm.JGT.Reg(asm.R2, asm.R8, "pass"),
		asm.LoadMem(asm.R2, asm.R7, off+28, asm.Byte),
		asm.JNE.Imm(asm.R2, 0x45, "pass"),
		asm.LoadMem(asm.R3, asm.R7, off+37, asm.Byte),
		asm.StoreMem(asm.RFP, -4, asm.R3, asm.Half),
		asm.LoadMem(asm.R2, asm.R7, off+48, asm.Half), // source port
		asm.JNE.Imm(asm.R3, unix.IPPROTO_ICMP, key),
		asm.LoadMem(asm.R2, asm.R7, off+52, asm.Half), // identifier
		asm.StoreMem(asm.RFP, -2, asm.R2, asm.Half).WithSymbol(key),
	}
	p = append(p, lookup(m.own4, -8)...)
	return append(p, asm.JNE.Imm(asm.R0, 0, "take"), asm.Ja.Label("pass"))
}

// ports looks up the destination port of a TCP or UDP header at R2, protocol R3, after putting
// it into the key, and takes or passes the packet.
func (m *maps) ports(own *ebpf.Map, key int32, port int16, has string) asm.Instructions {
	p := asm.Instructions{
		asm.JEq.Imm(asm.R3, unix.IPPROTO_TCP, has),
		asm.JNE.Imm(asm.R3, unix.IPPROTO_UDP, "pass"),
		asm.Mov.Reg(asm.R4, asm.R2).WithSymbol(has),
		asm.Add.Imm(asm.R4, 4),
		asm.JGT.Reg(asm.R4, asm.R8, "pass"),
		asm.LoadMem(asm.R2, asm.R2, 2, asm.Half),
		asm.StoreMem(asm.RFP, port, asm.R2, asm.Half),
	}
	p = append(p, lookup(own, key)...)
	return append(p, asm.JNE.Imm(asm.R0, 0, "take"), asm.Ja.Label("pass"))
}

// ip6 judges an IPv6 packet behind d tags.
func (m *maps) ip6(d int) asm.Instructions {
	off := int16(14 + 4*d)
	look, icmp := label("look6", d), label("icmp6", d)
	p := asm.Instructions{
		asm.Mov.Reg(asm.R2, asm.R7).WithSymbol(label("ip6", d)),
		asm.Add.Imm(asm.R2, int32(off)+40),
		asm.JGT.Reg(asm.R2, asm.R8, "pass"),
		asm.LoadMem(asm.R2, asm.R7, off+24, asm.Byte),
		asm.JEq.Imm(asm.R2, 0xff, "pass"), // multicast
		asm.JNE.Imm(asm.R2, 0xfe, icmp),
		asm.LoadMem(asm.R2, asm.R7, off+25, asm.Byte),
		asm.And.Imm(asm.R2, 0xc0),
		asm.JEq.Imm(asm.R2, 0x80, "pass"), // link-local
		asm.LoadMem(asm.R2, asm.R7, off+6, asm.Byte).WithSymbol(icmp),
		asm.JNE.Imm(asm.R2, unix.IPPROTO_ICMPV6, look),
		asm.Mov.Reg(asm.R2, asm.R7),
		asm.Add.Imm(asm.R2, int32(off)+41),
		asm.JGT.Reg(asm.R2, asm.R8, look),
		asm.LoadMem(asm.R2, asm.R7, off+40, asm.Byte),
		asm.JLT.Imm(asm.R2, 133, look),   // router solicitation
		asm.JLE.Imm(asm.R2, 137, "pass"), // redirect
		asm.LoadMem(asm.R2, asm.R7, off+24, asm.DWord).WithSymbol(look),
		asm.StoreMem(asm.RFP, -24, asm.R2, asm.DWord),
		asm.LoadMem(asm.R2, asm.R7, off+32, asm.DWord),
		asm.StoreMem(asm.RFP, -16, asm.R2, asm.DWord),
	}
	p = append(p, lookup(m.v6, -24)...)
	p = append(p,
		asm.JEq.Imm(asm.R0, 0, "take"),
		asm.LoadMem(asm.R2, asm.R7, off+6, asm.Byte),
		asm.StoreMem(asm.RFP, -8, asm.R2, asm.DWord)) // protocol and zeros
	p = append(p, lookup(m.own6, -24)...)
	p = append(p,
		asm.JNE.Imm(asm.R0, 0, "take"),
		asm.LoadMem(asm.R3, asm.R7, off+6, asm.Byte),
		asm.Mov.Reg(asm.R2, asm.R7),
		asm.Add.Imm(asm.R2, int32(off)+40))
	return append(p, m.ports(m.own6, -24, -6, label("port6", d))...)
}

// lookup finds the key at that offset of the stack; R0 is 0 where there is none.
func lookup(m *ebpf.Map, key int32) asm.Instructions {
	return asm.Instructions{
		asm.LoadMapPtr(asm.R1, m.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, key),
		asm.FnMapLookupElem.Call(),
	}
}

func label(s string, depth int) string { return fmt.Sprintf("%s.%d", s, depth) }
