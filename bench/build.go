package bench

import "runtime/debug"

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
