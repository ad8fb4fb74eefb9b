// Package pcap is the driver of capture files: Rx replays one, Tx records to another.
//
// # Replay
//
// The file of the field read, pcap or pcapng, also compressed by gzip, is loaded into memory
// by Open. Packets come in the order of the file: rate 0 keeps the recorded distances in
// time, a positive rate is packets a second, and -1 gives them as fast as they are taken. loop is how
// often: 0 and 1 are once, -1 is without end. Only Ethernet can be replayed. A last
// record that is cut off is left out, and Why says so; frames without a whole Ethernet
// header or longer than 65535 bytes are left out and counted once as RxBad.
//
// The port's MAC, unless configured, is the one that most frames of the file are addressed to.
//
// # Recording
//
// Tx copies packets into a bounded buffer, from which a goroutine writes the pcapng file of the
// field write. Where the disk is slower than the packets, Tx refuses them (TxFull). After
// an error of the file the link is down, Why tells it, and what was in the buffer counts as
// TxFailed. Without write, Tx takes all packets and forgets them.
package pcap
