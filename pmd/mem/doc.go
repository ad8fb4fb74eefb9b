// Package mem is the driver of ports in memory: rings of packet indices between two
// ports of this process. They serve tests, traffic generators and benchmarks, and
// need neither privileges nor a kernel.
//
// # Wires
//
// Pair makes two ports joined by a wire: what queue i of one transmits, queue i of the
// other receives, as the same buffers, without a copy. From a configuration, the two ports
// that name the same wire in the field socket are the ends of one.
//
// # Ownership
//
// A packet in a ring is the receiving queue's while that runs, and the sending
// queue's otherwise: whichever Stops last frees it.
//
// # Replay
//
// A Replay is a source for benchmarks: it hands out one set of packets again and
// again, without building or freeing any.
package mem
