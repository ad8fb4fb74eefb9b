// Package fib finds the way of each packet: longest-prefix match on its destination, then the
// next hop, down to the adjacency that says which Ethernet header it leaves with.
//
//	destination --Table4/Table6--> group --graph.Tables.Groups--> adjacency, or a reason to leave
//
// # Life of a route
//
// The control side gives routes (Update), interfaces (SetIface) and neighbours
// (SetNeighbour) from any number of sources, in any order. The FIB keeps all of them, picks for
// each prefix the best route that can be used now, and keeps the tables of the hot path equal to that
// choice. Equal sets of next hops share one group, so that a neighbour that
// changes its address costs one store for all the routes behind it.
//
//   - A route over an interface that is down is kept and not used.
//   - A route whose neighbours are all unresolved is used: its packets leave for
//     Reasons.Unresolved, and Target says whom to ask for.
//   - A neighbour inside a connected prefix has a host entry in the tables of its own.
//
// # Routing tables, rules, sources
//
// There are many routing tables (table.go), which share groups and neighbours. An interface's packets are looked up in
// its table, or as the rules say (rule.go). Both come to a policy (policy.go): for each interface the chain of
// steps that its packets may need. It is published as one pointer; where all packets are looked up in main, which is
// checked once a vector, there is none. The same chains answer where a packet's source is (rpf.go).
// Multicast routes are in package mcast; the FIB holds the adjacencies that their copies leave by (multicast.go).
//
// # Several next hops
//
// A group of several next hops deals its buckets to them by weight (share.go); a flow's hash picks a bucket, so that a next
// hop that fails moves its own flows and no others (group.go).
//
// # Answers
//
// Explain and Decide say for one flow what the hot path does and why. AuditRoutes compares the routes with
// those of a source, and Verify the tables of the hot path with the routes.
//
// # Synchronisation
//
// Cold methods take one mutex. The hot path takes none: each change is one store of at
// most 64 bits that leads from one complete state to another, in the order of
// amd64 (stores become visible in program order): adjacency, then buckets, then
// group, then prefix table. What is unlinked (table blocks, groups, buckets,
// adjacencies) is used again only after all workers have passed a poll round (package epoch).
//
// # Tables
//
// Table4 is DIR-24-8 (Gupta, Lin, McKeown: Routing Lookups in Hardware at Memory
// Access Speeds, INFOCOM 1998): one access for prefixes to /24, two beyond. Compact4 counts bits in a word for each /19: two accesses,
// three beyond /24, in a fifth of the memory: the main table is a Table4, the others are Compact4. Table6 is a directory of 2^20
// trees of cache lines with 15 keys of 32 bits each, which are compared at once: five accesses for prefixes to /52.
package fib
