// Millrace is a fast packet router: see `millrace --help`.
package main

import (
	"os"

	"millrace/control/cli"
)

// version is set by the linker: -ldflags "-X main.version=v1.2.3".
var version = "devel"

func main() {
	os.Exit(cli.Main(cli.Options{Version: version}))
}
