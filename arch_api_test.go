package usernet_test

import (
	"fmt"
	"go/importer"
	"go/token"
	"go/types"
	"io"
	"os"
	"strings"
	"testing"
)

// shown lists types of other modules and internal packages that the public API
// names on purpose.
var shown = map[string]string{
	"ipam go.etcd.io/bbolt":                            "NewBoltStore takes the caller's database, which holds more than leases",
	"tunnel golang.zx2c4.com/wireguard/tun":            "Wrap exists to take that type",
	"tunnel/tunneltest golang.zx2c4.com/wireguard/tun": "makes what Wrap takes",
	"tunnel " + module + "/internal/packet":            "Header.Check is for the switch, which has parsed the packet already",
}

// TestPublicAPISpeaksOurTypes looks for types of other modules, and of our
// internal packages, in all that public packages export: a user could not name
// them, or would be bound to the version that we chose.
func TestPublicAPISpeaksOurTypes(t *testing.T) {
	var public []string
	for _, p := range allPackages(t) {
		if p.public() && len(p.GoFiles) > 0 {
			public = append(public, p.ImportPath)
		}
	}
	list, err := goList(append([]string{"-export", "-deps"}, public...)...)
	if err != nil {
		t.Fatal(err)
	}
	exports := make(map[string]string)
	for _, p := range list {
		exports[p.ImportPath] = p.Export
	}
	load := importer.ForCompiler(token.NewFileSet(), "gc", func(path string) (io.ReadCloser, error) {
		if exports[path] == "" {
			return nil, fmt.Errorf("go list has no compiled declarations of %s", path)
		}
		return os.Open(exports[path])
	})
	for _, path := range public {
		p, err := load.Import(path)
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		w := apiWalk{t: t, home: p, seen: make(map[types.Type]bool)}
		for _, name := range p.Scope().Names() {
			if o := p.Scope().Lookup(name); o.Exported() {
				w.object(o)
			}
		}
	}
}

// apiWalk visits what one package exports.
type apiWalk struct {
	t    *testing.T
	home *types.Package
	at   string // the exported thing being visited
	seen map[types.Type]bool
}

func (w *apiWalk) object(o types.Object) {
	w.at = o.Name()
	w.visit(o.Type())
}

// visit reports foreign types within typ, as far as a user can see into it.
func (w *apiWalk) visit(typ types.Type) {
	if w.seen[typ] {
		return
	}
	w.seen[typ] = true
	switch x := typ.(type) {
	case *types.Named:
		w.named(x)
	case *types.Alias:
		w.visit(x.Rhs())
	case *types.Struct:
		for f := range x.Fields() {
			if f.Exported() {
				w.visit(f.Type())
			}
		}
	case *types.Interface:
		for m := range x.Methods() {
			w.visit(m.Type())
		}
	case *types.Signature:
		w.visit(x.Params())
		w.visit(x.Results())
	case *types.Tuple:
		for v := range x.Variables() {
			w.visit(v.Type())
		}
	case *types.Map:
		w.visit(x.Key())
		w.visit(x.Elem())
	case interface{ Elem() types.Type }: // pointer, slice, array, channel
		w.visit(x.Elem())
	}
}

// named judges where a type comes from, and looks into those of the package.
func (w *apiWalk) named(n *types.Named) {
	for a := range n.TypeArgs().Types() {
		w.visit(a)
	}
	from := n.Obj().Pkg()
	if from != nil && from != w.home {
		if path := from.Path(); !standard(path) && !ours(path) && shown[pkg{ImportPath: w.home.Path()}.rel()+" "+path] == "" {
			w.t.Errorf("%s: %s shows %s to users", w.home.Path(), w.at, n)
		}
		return
	}
	w.visit(n.Underlying())
	at := w.at
	for m := range n.Methods() {
		if m.Exported() {
			w.at = at + "." + m.Name()
			w.visit(m.Type())
		}
	}
	w.at = at
}

// standard reports whether the package is of the standard library.
func standard(path string) bool {
	first, _, _ := strings.Cut(path, "/")
	return !strings.Contains(first, ".")
}

// ours reports whether the package is of this module and open to users.
func ours(path string) bool {
	return under(path, module) && !strings.Contains(path, "/internal/")
}
