// Package graph is the contract between the road and its stages: the Vector of packets
// that goes down it, the Stage, the Reasons for leaving, the Tables that all cores
// read and the Worker that a stage runs on.
//
// # One straight way
//
// A vector of up to 256 packets goes down an ordered list of stages, in place. Lanes are
// lists of positions: a stage works on its lane's packets and takes off those that
// leave. There are three ways to leave:
//
//   - Exit(i, reason): counted, traced and captured by its reason, then dropped, handed to the host, or
//     taken by an exit stage (ICMP errors, the neighbour queue, fragmentation ...).
//   - Again(i): round once more from behind classify, after decapsulation.
//   - transmission, by the last stage.
//
// Exits are settled once at the end of the road, so that an exit costs the stages that
// follow nothing.
//
// # Holding packets
//
// A stage that waits (for a neighbour, for crypto on another core, for time to pass)
// is a Source: it parks packets with the fields that stages share and refills a
// vector later, which enters the road where the Stage says (Resume).
//
// # Rules of the hot path
//
// No allocation, lock or blocking call in Run; no call inside a packet loop, not even
// on its rare side (it makes the compiler spill every loop variable): set odd packets aside in
// Vector.Odd and judge them after the loop. Index arrays by uint8, which needs no
// bounds check. Count by runs of equal packets, not by packet.
package graph
