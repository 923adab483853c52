package daemon

import (
	"testing"

	"github.com/usernet/usernet/internal/control"
)

// FuzzConfigFile: a file that is accepted has networks that can be defined or
// are refused as invalid, never a panic and never a fault of the daemon's own.
func FuzzConfigFile(f *testing.F) {
	f.Add([]byte("networks: [{name: a, subnets: [10.1.0.0/24, \"fd01::/64\"], gateways: [10.1.0.9]}]"))
	f.Add([]byte("idleExit: 5m\nlogLevel: warn\nlimits: {dials: -1}"))
	f.Add([]byte("networks: [{name: a, sets: [[{subnet: 10.1.0.0/24, rangeStart: 10.1.0.5}]]}]"))
	f.Add([]byte("networks: [{name: a, subnets: [0.0.0.0/0, \"::/0\"]}]"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		file, err := parseFile(raw)
		if err != nil {
			return
		}
		for _, n := range file.Networks {
			req, err := n.request()
			if err != nil {
				t.Fatalf("accepted %q, then refused it: %v", raw, err)
			}
			rec, err := newRecord(req, control.SourceConfig, nil)
			if err != nil {
				if control.CodeOf(err) != control.CodeInvalid {
					t.Fatalf("%q: %v has code %s", raw, err, control.CodeOf(err))
				}
				continue
			}
			for _, g := range rec.Gateways {
				if !g.IsValid() || !g.Contains(g.Addr()) {
					t.Fatalf("%q: gateway %v", raw, g)
				}
			}
			if rec.agrees(rec) != nil || !rec.sameDefinition(rec) {
				t.Fatalf("%q: a network differs from itself", raw)
			}
		}
	})
}
