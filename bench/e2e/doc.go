// Package e2e tests the built binary as its users run it: routers in network
// namespaces, real programs as their peers. Every test ends with the router's account
// of packets and buffers in order.
//
// All of it needs root; what needs a further program is skipped without it.
package e2e
