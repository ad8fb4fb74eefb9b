package config

import _ "embed"

//go:embed sample.yaml
var sample string

// Sample is a configuration with every key, its meaning and its default.
func Sample() string { return sample }
