// Package ip judges received IPv4 and IPv6 headers before anything looks up a route.
//
// # Order
//
//	check4   version, lengths, checksum, addresses, options, TTL
//	check6   version, lengths, addresses, hop-by-hop options, hop limit
//	options  behind the next hop: IPv4's record route and timestamp
//
// Each check is a loop over plain packets without a call in it; everything else is set
// aside, judged one by one behind the loop, and put back into its old place in the lane
// if it may stay, so that no flow is reordered.
//
// # What is not judged here
//
// Destinations are the lookup's to judge, with one exception: a packet for the router itself may
// arrive with a TTL of 1 or with options, which are the host's business. Multicast keeps
// a TTL of 1 here, too: what sends it on by a multicast route must look at it.
//
// The packages below hold the exits: icmp sends the errors that are owed, frag
// fragments, neigh holds packets until their neighbour is resolved.
package ip
