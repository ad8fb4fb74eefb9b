// Package host is the built-in host of ports that no kernel sees: rigs, labs, memif. It
// answers what a router must answer itself, and nothing more: there are no
// sockets behind it.
//
// # What it does
//
//	ARP        replies, probes included; learns; resolves (RFC 826, RFC 5227 2.1.1)
//	ND         NS, NA, neighbour unreachability detection (RFC 4861 7); RS, RA and
//	           redirects are ignored; duplicate address detection is answered, not done
//	MLD        joins the solicited-node groups, answers queries of both versions
//	           (RFC 3810, RFC 2710)
//	ICMP       echo, over fragments and multicast too; errors about what is addressed
//	           to the router and cannot be delivered (RFC 1122 3.2.2, RFC 4443), limited
//	           by a token bucket
//	TCP        a reset for every segment (RFC 9293 3.10.7.1)
//	IPv6       options, routing headers (RFC 5095), fragments (RFC 8200 4, RFC 6946)
//
// IPv4 options are neither honoured nor reflected, and ICMP timestamps not answered.
//
// # Addresses
//
// Its addresses are those of graph.Tables.Addrs, on whichever interface they are, as
// Linux does it (weak host model). An interface without a link-local IPv6 address has
// the one that follows from its MAC by modified EUI-64 (RFC 4291 2.5.1). It belongs to
// every interface without a kernel that is up. The road delivers only what the tables say
// is local, so that the control side publishes that address too.
//
// # A packet's life
//
// Take reads a packet in one piece (copying only those of several segments), answers it
// and frees it: it counts in ToHost, or by a reason of kind Drop. Each answer is a new packet and counts
// in Created. Answers to link-local addresses and everything of ARP, ND and MLD go
// out by the interface itself, after the neighbour is resolved by the host's own
// cache; all others wait for Refill and take the road from the lookup on, with a TTL
// higher by the one that the road takes off.
//
// # Concurrency
//
// Each worker has a Host of its own. What one learns it tells the others by a bounded queue of
// events that each reads in Tick, so that a neighbour's answer may arrive on any
// worker's queue. Service.Solicit may be called by any thread.
//
// # Bounds
//
// Neighbours, packets waiting for one, datagrams in reassembly and errors a second are
// all bounded by constants of this package; memory is taken when the worker starts.
package host
