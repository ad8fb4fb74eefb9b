package pmd

import (
	"fmt"
	"slices"
	"strings"
)

// Check returns an error that names the first field which is set and which the driver does not know.
// Fields are named as in the configuration file: "socket", "read"; every driver knows Name,
// Driver, MTU, Pool, Queues, Ring and MAC.
func (c Config) Check(driver string, known ...string) error {
	for _, f := range []struct {
		name string
		set  bool
	}{
		{"socket", c.Socket != ""}, {"role", c.Role != ""}, {"id", c.ID != 0}, {"secret", c.Secret != ""},
		{"read", c.Read != ""}, {"write", c.Write != ""}, {"loop", c.Loop != 0}, {"rate", c.Rate != 0},
		{"mode", c.Mode != ""}, {"whole", c.Whole},
	} {
		if f.set && !slices.Contains(known, f.name) {
			takes := "no field of its own"
			if len(known) > 0 {
				takes = strings.Join(known, ", ")
			}
			return fmt.Errorf("%s: port %s: %s: a port of this driver has none; it takes %s beside the common fields", driver, c.Name, f.name, takes)
		}
	}
	return nil
}
