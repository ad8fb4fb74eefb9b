package fib

import "millrace/pipeline/graph"

// Reasons are those that other packages declare and the FIB gives to packets.
type Reasons struct {
	// Unresolved is given to packets whose next hop's Ethernet address is not
	// known: of kind Hold, taken by the neighbour stage.
	Unresolved graph.Reason
}

// Why packets end at a destination that is not a neighbour.
var (
	XNoRoute = graph.NewReason(graph.ReasonInfo{Stage: "lookup", Name: "no-route",
		Doc:   "No route covers the destination, and there is no default route. See `show routes ADDRESS`.",
		ICMP4: graph.Owe(3, 0), ICMP6: graph.Owe(1, 0)})
	XBlackhole = graph.NewReason(graph.ReasonInfo{Stage: "lookup", Name: "blackhole",
		Doc: "The best route is of type blackhole: somebody wants these packets to vanish without an answer."})
	XUnreachable = graph.NewReason(graph.ReasonInfo{Stage: "lookup", Name: "unreachable",
		Doc:   "The best route is of type unreachable: somebody wants the sender to be told that the host is unreachable.",
		ICMP4: graph.Owe(3, 1), ICMP6: graph.Owe(1, 3)})
	XProhibit = graph.NewReason(graph.ReasonInfo{Stage: "lookup", Name: "prohibit",
		Doc:   "The best route is of type prohibit: somebody wants the sender to be told that policy forbids it.",
		ICMP4: graph.Owe(3, 13), ICMP6: graph.Owe(1, 1)})
	XLocal = graph.NewReason(graph.ReasonInfo{Stage: "lookup", Name: "local", Kind: graph.Host, To: "host",
		Doc: "The destination is one of the router's own addresses: the packet goes up to the host."})
	XMulticast = graph.NewReason(graph.ReasonInfo{Stage: "lookup", Name: "multicast", Kind: graph.Hold, To: "multicast",
		Doc: "The destination is a multicast group: the multicast routes say what becomes of the packet. See `show mroutes`."})
	XBroadcast = graph.NewReason(graph.ReasonInfo{Stage: "lookup", Name: "limited-broadcast", Kind: graph.Host, To: "host",
		Doc: "The destination is 255.255.255.255, which never leaves its link (RFC 919): the packet goes up to the host, as DHCP needs."})
	XDirectedBroadcast = graph.NewReason(graph.ReasonInfo{Stage: "lookup", Name: "directed-broadcast",
		Doc: "The destination is the broadcast address (all ones or all zeros) of a connected network. Routers do not pass these on, since they amplify attacks (RFC 2644)."})
	XMartian = graph.NewReason(graph.ReasonInfo{Stage: "lookup", Name: "martian-destination",
		Doc: "The destination cannot be reached through any router: 0/8, loopback, 240/4, ::, ::1 or an IPv4-mapped address (RFC 1812 5.3.7, RFC 6890). The sender is misconfigured."})
	XRuleBlackhole = graph.NewReason(graph.ReasonInfo{Stage: "lookup", Name: "rule-blackhole",
		Doc: "A rule of policy routing (`ip rule`) wants these packets to vanish without an answer."})
	XRuleUnreachable = graph.NewReason(graph.ReasonInfo{Stage: "lookup", Name: "rule-unreachable",
		Doc:   "A rule of policy routing (`ip rule`) wants the sender to be told that there is no route.",
		ICMP4: graph.Owe(3, 0), ICMP6: graph.Owe(1, 0)})
	XRuleProhibit = graph.NewReason(graph.ReasonInfo{Stage: "lookup", Name: "rule-prohibit",
		Doc:   "A rule of policy routing (`ip rule`) wants the sender to be told that policy forbids it.",
		ICMP4: graph.Owe(3, 13), ICMP6: graph.Owe(1, 1)})
	XLinkLocal = graph.NewReason(graph.ReasonInfo{Stage: "lookup", Name: "link-local-destination",
		Doc:   "The destination is link-local (169.254/16, fe80::/10): it means something on one link only, and routers do not pass it on (RFC 3927 7, RFC 4291 2.5.6).",
		ICMP6: graph.Owe(1, 2)})
)
