package match_test

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"millrace/netfilter/classbench"
	"millrace/netfilter/match"
)

// dataDir has files of ClassBench's, where the variable is set; rules are made otherwise.
var dataDir = os.Getenv("MILLRACE_CLASSBENCH")

type set struct {
	name  string
	rules []classbench.Rule
}

// sets are rule sets of up to most rules, of both families.
func sets(most int) (l []set) {
	l = append(l, set{"fw250", classbench.Firewall()})
	for _, n := range []struct {
		name string
		n    int
	}{{"30", 30}, {"60", 60}, {"100", 100}, {"250", 250}, {"1k", 1000}, {"2k", 2000}, {"4k", 4000}, {"10k", 10000}, {"100k", 100000}} {
		for _, kind := range classbench.Kinds {
			if n.n > most {
				continue
			}
			name := kind + "_" + n.name
			rs, err := classbench.Read(filepath.Join(dataDir, name+".gz"))
			if err != nil {
				rs = classbench.Make(kind, n.n, false, 1)
			}
			l = append(l, set{name, rs}, set{name + "/v6", classbench.Make(kind, n.n, true, 1)})
		}
	}
	return l
}

// engines are those that tables can be asked for.
var engines = []match.Engine{match.Vectors}

// TestSets compares tables of large rule sets with the obvious matcher.
func TestSets(t *testing.T) {
	most, batches := 10000, 4
	if testing.Short() {
		most, batches = 1000, 2
	}
	for _, set := range sets(most) {
		schema, rules := classbench.Schema(set.rules), classbench.Rules(set.rules)
		ps := classbench.Packets(set.rules, batches*match.BatchSize, 5, rand.New(rand.NewPCG(3, uint64(len(rules)))))
		keys := classbench.Keys(schema, ps)
		want := make([]match.Column, batches) // the first match, and the second
		next := make([]match.Column, batches)
		values := make([]match.Value, len(schema))
		for i := range ps {
			for f := range values {
				values[f] = keys[i/match.BatchSize].Value(schema, f, uint8(i))
			}
			w, n := match.Linear(rules, values, 0), match.None
			if w != match.None {
				n = match.Linear(rules, values, w+1)
			}
			want[i/match.BatchSize][uint8(i)], next[i/match.BatchSize][uint8(i)] = w, n
		}
		for _, e := range engines {
			table, err := match.Build(schema, rules, match.Options{Engine: e})
			if err != nil {
				t.Logf("%s/%s: %v", set.name, e, err)
				continue
			}
			var out match.Column
			s := new(match.Scratch)
			for b := range keys {
				table.First(keys[b], everybody, &out, s)
				if out != want[b] {
					t.Errorf("%s/%s: first matches are %v, want %v", set.name, e, out, want[b])
				}
				table.Next(keys[b], everybody, &out, s)
				if out != next[b] {
					t.Errorf("%s/%s: next matches are %v, want %v", set.name, e, out, next[b])
				}
			}
			table.Close()
		}
	}
}

// everybody is a lane of all positions.
var everybody = func() (l []uint8) {
	for i := range match.BatchSize {
		l = append(l, uint8(i))
	}
	return l
}()
