package ip

import "millrace/pipeline/graph"

// Why IPv4 packets leave at check4.
var (
	XHeader4 = graph.NewReason(graph.ReasonInfo{Stage: "check4", Name: "bad-header",
		Doc: "The version is not 4 or the header is shorter than 20 bytes (RFC 1812 5.2.2). The sender or something on the way is broken: look at the packet in a capture of drops."})
	XLength4 = graph.NewReason(graph.ReasonInfo{Stage: "check4", Name: "bad-length",
		Doc: "The total length is shorter than the header or longer than what arrived (RFC 1812 5.2.2). A frame was cut off: compare the MTUs along the way."})
	XSum4 = graph.NewReason(graph.ReasonInfo{Stage: "check4", Name: "bad-checksum",
		Doc: "The header's checksum is wrong (RFC 1812 5.2.2). On a veth or a virtual machine the sender may leave checksums to the device: `ethtool -K DEVICE tx off` there."})
	XSplit4 = graph.NewReason(graph.ReasonInfo{Stage: "check4", Name: "header-split",
		Doc: "The header with its options is spread over buffers and there was no room to join it. The port receives into buffers that are too small."})
	XSource4 = graph.NewReason(graph.ReasonInfo{Stage: "check4", Name: "martian-source",
		Doc: "The source address names no host: 0/8, 127/8, multicast, or 240/4 (RFC 1812 5.3.7). It is forged, or the sender has no address yet."})
	XLinkLocal4 = graph.NewReason(graph.ReasonInfo{Stage: "check4", Name: "link-local-source",
		Doc: "A packet from a link-local address (169.254/16) may not leave its link (RFC 3927 7). The sender found no DHCP server, or has no other address."})
	XTTL4 = graph.NewReason(graph.ReasonInfo{Stage: "check4", Name: "ttl-expired",
		Doc:   "The TTL ran out here: traceroute, or a routing loop if there are many.",
		ICMP4: graph.Owe(11, 0)})
	XOptions4 = graph.NewReason(graph.ReasonInfo{Stage: "check4", Name: "bad-options",
		Doc:   "An IPv4 option is malformed (RFC 791 3.1); the ICMP error points to the byte.",
		ICMP4: graph.Owe(12, 0), Arg: problem4})
	XSourceRoute = graph.NewReason(graph.ReasonInfo{Stage: "check4", Name: "source-route",
		Doc:   "The packet wants to choose its own way (LSRR or SSRR), which lets senders bypass filters; source routes are never followed (RFC 7126 4.3).",
		ICMP4: graph.Owe(3, 5)})
)

// Why IPv6 packets leave at check6.
var (
	XHeader6 = graph.NewReason(graph.ReasonInfo{Stage: "check6", Name: "bad-header",
		Doc: "The version is not 6. The sender or something on the way is broken: look at the packet in a capture of drops."})
	XLength6 = graph.NewReason(graph.ReasonInfo{Stage: "check6", Name: "bad-length",
		Doc: "The payload length is longer than what arrived. A frame was cut off: compare the MTUs along the way."})
	XJumbo = graph.NewReason(graph.ReasonInfo{Stage: "check6", Name: "jumbogram",
		Doc: "A jumbogram, longer than 65,535 bytes by a hop-by-hop option (RFC 2675), which no port here can carry; or an option that says so falsely."})
	XSource6 = graph.NewReason(graph.ReasonInfo{Stage: "check6", Name: "martian-source",
		Doc: "The source address names no node on a network: multicast, unspecified, loopback, or an IPv4-mapped address (RFC 4291 2.5, 2.7). It is forged, or the sender has no address yet."})
	XLinkLocal6 = graph.NewReason(graph.ReasonInfo{Stage: "check6", Name: "link-local-source",
		Doc:   "A packet from a link-local address may not leave its link (RFC 4291 2.5.6). The sender has no address of wider scope: is a router advertising a prefix?",
		ICMP6: graph.Owe(1, 2)})
	XHopLimit6 = graph.NewReason(graph.ReasonInfo{Stage: "check6", Name: "hop-limit",
		Doc:   "The hop limit ran out here: traceroute, or a routing loop if there are many.",
		ICMP6: graph.Owe(3, 0)})
	XHopByHop = graph.NewReason(graph.ReasonInfo{Stage: "check6", Name: "bad-hop-by-hop",
		Doc: "The hop-by-hop options header ends behind the packet, or an option behind the header."})
	XManyOptions = graph.NewReason(graph.ReasonInfo{Stage: "check6", Name: "many-options",
		Doc: "More hop-by-hop options than 8, or than 256 bytes of them: more than a router should be made to read (RFC 9673)."})
	XDiscard6 = graph.NewReason(graph.ReasonInfo{Stage: "check6", Name: "option-discard",
		Doc: "A hop-by-hop option that is not known here says that packets with it be discarded silently (RFC 8200 4.2)."})
	XOption6 = graph.NewReason(graph.ReasonInfo{Stage: "check6", Name: "unknown-option",
		Doc:   "A hop-by-hop option that is not known here asks for an error about it (RFC 8200 4.2); the error points to it.",
		ICMP6: graph.Owe(4, 2), Arg: problem6})
)
