package traffic

import (
	"embed"
	"fmt"
	"strings"

	"millrace/internal/yamltree"
)

//go:embed profiles/*.yaml
var ready embed.FS

// Names are the profiles that are there without a file, in the order of the alphabet.
func Names() (l []string) {
	es, err := ready.ReadDir("profiles")
	if err != nil {
		panic(err)
	}
	for _, e := range es {
		l = append(l, strings.TrimSuffix(e.Name(), ".yaml"))
	}
	return l
}

// Text is the YAML of a ready profile.
func Text(name string) ([]byte, error) {
	b, err := ready.ReadFile("profiles/" + name + ".yaml")
	if err != nil || strings.Contains(name, "/") {
		return nil, fmt.Errorf("traffic: profile %s", yamltree.OneOf(name, Names()))
	}
	return b, nil
}

// Open compiles a ready profile, or, where the name has a dot or slash, a file.
func Open(name string, env Env) (*Profile, error) {
	if strings.ContainsAny(name, "./") {
		return Load(name, env)
	}
	b, err := Text(name)
	if err != nil {
		return nil, err
	}
	p, err := Parse(name+".yaml", b, env)
	if err == nil {
		p.Name = name
	}
	return p, err
}
