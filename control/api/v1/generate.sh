#!/bin/sh
# generate.sh DIR: writes the Go of the schema to DIR.
set -eu
out=$(realpath "$1")
cd "$(dirname "$0")"
bin=$(mktemp -d)
trap 'rm -rf "$bin"' EXIT
GOBIN=$bin CGO_ENABLED=0 go install google.golang.org/protobuf/cmd/protoc-gen-go connectrpc.com/connect/cmd/protoc-gen-connect-go
PATH=$bin:$PATH protoc -I . \
	--go_out="$out" --go_opt=paths=source_relative \
	--connect-go_out="$out" --connect-go_opt=paths=source_relative,package_suffix,simple \
	*.proto
