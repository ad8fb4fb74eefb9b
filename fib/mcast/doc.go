// Package mcast forwards multicast: one table of multicast routes for IPv4 and IPv6, and the exit stage that
// replicates packets.
//
//	lookup -- destination in 224/4 or ff00::/8 --> multicast
//	    (S,G), else (*,G) -- none --> host: it may listen, and tells its routing daemon of a new source
//	    came in by the route's interface? -- no --> drop (the reverse-path check)
//	    for each outgoing interface with TTL > threshold: a replica --> options4, rewrite, tx
//
// Unicast pays nothing for it: what is for a group leaves the lookup like a packet without a route.
//
// # Replicas
//
// A replica is a small buffer of its own with the IP header, chained to indirect buffers that borrow the
// payload (packet.Cache.Replicate): TTL, options and MAC addresses differ, nothing is copied. The last interface gets
// the packet itself. Only a port that cannot send a chain so long has the payload copied.
//
// # Table
//
// Keys of both families are 16-byte addresses, IPv4 mapped (RFC 4291 2.5.5.2), in one hash table with linear
// probing. A route is an immutable value on the heap; a change is one store of its pointer. A removed one
// leaves a mark in its place, and the table is built anew when too few places are free. Workers take no lock.
//
// Outgoing interfaces are numbers: the adjacency of an interface's groups stands in graph.Tables.Multicast, and changes
// there when the interface does. No route has to be touched for it.
//
// # Counters
//
// Each worker has a cell per route, outside the Go heap, written by plain stores and summed by who asks.
package mcast
