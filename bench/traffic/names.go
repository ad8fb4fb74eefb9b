package traffic

import "millrace/packet"

// Names of numbers, as ip, tc, nft, scapy and tcpdump print them.
var (
	protoNames = map[string]uint64{"icmp": packet.ProtoICMP, "igmp": packet.ProtoIGMP, "ipip": packet.ProtoIPIP, "tcp": packet.ProtoTCP,
		"udp": packet.ProtoUDP, "dccp": packet.ProtoDCCP, "ipv6": packet.ProtoIPv6, "gre": packet.ProtoGRE, "esp": packet.ProtoESP,
		"ah": packet.ProtoAH, "icmpv6": packet.ProtoICMPv6, "ipv6-icmp": packet.ProtoICMPv6, "ospf": packet.ProtoOSPF, "pim": packet.ProtoPIM,
		"vrrp": packet.ProtoVRRP, "sctp": packet.ProtoSCTP, "udplite": packet.ProtoUDPLite, "none": packet.ProtoNoNext}
	dscpNames = map[string]uint64{"default": 0, "be": 0, "le": 1, "ef": 46, "va": 44,
		"cs0": 0, "cs1": 8, "cs2": 16, "cs3": 24, "cs4": 32, "cs5": 40, "cs6": 48, "cs7": 56,
		"af11": 10, "af12": 12, "af13": 14, "af21": 18, "af22": 20, "af23": 22,
		"af31": 26, "af32": 28, "af33": 30, "af41": 34, "af42": 36, "af43": 38}
	ecnNames   = map[string]uint64{"not-ect": 0, "ect1": 1, "ect0": 2, "ce": 3}
	etherNames = map[string]uint64{"ipv4": 0x0800, "ip": 0x0800, "arp": 0x0806, "ipv6": 0x86dd, "mpls": 0x8847, "802.1q": 0x8100, "802.1ad": 0x88a8,
		"lldp": 0x88cc, "ptp": 0x88f7}
	portNames = map[string]uint64{"ftp": 21, "ssh": 22, "telnet": 23, "smtp": 25, "dns": 53, "domain": 53, "http": 80, "ntp": 123, "snmp": 161,
		"bgp": 179, "https": 443, "syslog": 514, "vxlan": 4789, "iperf3": 5201}
	icmpNames = map[string]uint64{"echo-reply": 0, "destination-unreachable": 3, "redirect": 5, "echo-request": 8, "echo": 8, "time-exceeded": 11,
		"parameter-problem": 12, "timestamp-request": 13, "timestamp-reply": 14}
	icmp6Names = map[string]uint64{"destination-unreachable": 1, "packet-too-big": 2, "time-exceeded": 3, "parameter-problem": 4,
		"echo-request": 128, "echo": 128, "echo-reply": 129, "router-solicitation": 133, "router-advertisement": 134,
		"neighbour-solicitation": 135, "neighbour-advertisement": 136}
	// tcpFlags are by the name and by scapy's letter.
	tcpFlags = []struct {
		name   string
		letter byte
		bit    uint16
	}{{"fin", 'F', 1}, {"syn", 'S', 2}, {"rst", 'R', 4}, {"psh", 'P', 8}, {"ack", 'A', 16}, {"urg", 'U', 32}, {"ece", 'E', 64}, {"cwr", 'C', 128}}
)

const (
	fin = 1 << iota
	syn
	rst
	psh
	ack
)

var (
	byteKind  = num("a number of 0 to 255", 8, nil)
	wordKind  = num("a number of 0 to 65535", 16, nil)
	longKind  = num("a number of 0 to 4294967295", 32, nil)
	portKind  = num("a port or range such as 53, 1024-65535 or random", 16, portNames)
	protoKind = num("a protocol such as udp, ospf or 89", 8, protoNames)
	dscpKind  = num("a DSCP such as af41, ef or 46", 6, dscpNames)
	ecnKind   = num("an ECN code point: not-ect, ect0, ect1, ce", 2, ecnNames)
	etherKind = num("an EtherType such as 0x88b5", 16, etherNames)
	vlanKind  = num("a VLAN id of 0 to 4095", 12, nil)
	prioKind  = num("a priority of 0 to 7", 3, nil)
	labelKind = num("an MPLS label of 0 to 1048575", 20, nil)
	flowKind  = num("a flow label of 0 to 0xfffff", 20, nil)
	icmpKind  = num("an ICMP type such as echo-request or 8", 8, icmpNames)
	icmp6Kind = num("an ICMPv6 type such as echo-request or 128", 8, icmp6Names)
)
