package result

import "runtime/debug"

// buildSetting is what the binary was built with.
func buildSetting(key string) string {
	if i, ok := debug.ReadBuildInfo(); ok {
		for _, s := range i.Settings {
			if s.Key == key {
				return s.Value
			}
		}
	}
	return ""
}
