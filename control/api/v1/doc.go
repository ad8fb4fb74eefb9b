// Package v1 is the generated Go of router.proto: the messages and the Connect
// client and handler of the router's control interface. The messages are also
// the router's status structs; there is no second set of types.
//
// After a change of router.proto run `go generate ./control/api/v1` (needs protoc; the two Go
// plugins are built at the versions of go.mod).
package v1

//go:generate ./generate.sh .
