// Tests of the tree's shape: who may import whom, what the exported API may
// show, how large files and functions may grow. When one fails, change the code
// first; change the table only with a reason that a reviewer will accept.
package usernet_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

const module = "github.com/usernet/usernet"

// imports lists for every package of the module which others of it may be
// imported, tests apart. What is not listed may not be imported.
var imports = map[string]struct{ allowed, reason string }{
	"internal/packet":         {"", "bytes in, facts out: everything that touches packets stands on it"},
	"internal/policy":         {"", "a pure function over plain data, so that it can be tested and read whole"},
	"internal/control":        {"internal/nearest", "the wire between two processes: types of either side would tie the other to it"},
	"internal/control/server": {"internal/control", "the daemon's side: without it, and net/http, clients start faster"},
	"internal/dhcp":           {"", "answers messages about one lease; who holds it is its caller's affair"},
	"internal/dns":            {"", "answers messages; who asks and how names are known is its caller's affair"},
	"internal/eventloop":      {"", "descriptors and who is told of them: it knows nothing of packets"},
	"internal/netns":          {"internal/undo", "the kernel's view of namespaces and interfaces, for every privileged step"},
	"internal/podman":         {"", "what podman's own configuration says of ports"},
	"internal/portowner":      {"", "reads the kernel's tables: who stands in the way of a listener"},
	"internal/redirect":       {"", "rules of nf_tables and the descriptor that they live by; the rest of ours knows of none"},
	"internal/nearest":        {"", "words of error messages"},
	"internal/cnilint":        {"internal/nearest", "a pure function over the text of configurations: what the machine and the plugin say is handed in"},
	"internal/undo":           {"", "a list of functions, for every set-up of several steps"},
	"ipam":                    {"", "addresses and opaque owners: useful to programs that use nothing else of ours"},
	"tunnel":                  {"internal/packet internal/undo", "frames carry packets, and a hostile frame is judged by its packet"},
	"tunnel/tunneltest":       {"internal/packet tunnel", "fakes and the contract of a Device, for tests"},
	"netstack":                {"internal/dhcp internal/dns internal/eventloop internal/packet internal/policy internal/portowner internal/undo tunnel", "the switch: everything between a Device and a host socket"},
	"internal/daemon":         {"internal/control internal/control/server internal/netns internal/portowner internal/undo ipam netstack tunnel", "binds state, leases, switches and the API; netns for the host's addresses"},
	"internal/sandbox":        {"internal/control internal/netns internal/portowner internal/undo ipam netstack tunnel", "a command with a switch in its own process, or with a daemon's"},
	"plugin":                  {"internal/control internal/netns internal/podman internal/portowner internal/redirect internal/undo tunnel", "a thin client: without netstack it starts fast and holds no packet code"},
	"conform":                 {"internal/netns internal/undo", "judges any CNI plugin from outside, ours too: it knows no plugin's code"},
	"":                        {"internal/sandbox netstack", "the easy API is a front of the sandbox and of the switch"},
	"cmd/usernet":             {". internal/cnilint internal/control internal/daemon internal/netns internal/podman internal/sandbox ipam netstack plugin tunnel", "flags, signals and exit codes over all the doors"},
	"cmd/usernet-cni":         {"plugin", "the executable that runtimes start for every container and every VERSION"},
	"cmd/cni-conform":         {"conform", "flags and exit codes over the suite"},
	"internal/nstest":         {"internal/netns tunnel", "namespaces and devices for tests"},
	"internal/lab":            {"internal/packet netstack tunnel tunnel/tunneltest", "a container in process, for tests"},
	"internal/testreport":     {"", "reads the events of go test"},
	"test":                    {"", "ring 3 uses binaries, as people do"},
}

// testOnly lists packages that no program may link.
var testOnly = []string{"tunnel/tunneltest", "internal/nstest", "internal/lab", "test"}

// libraries lists for some modules which of our packages may import them. The
// test files of others may too, unless strict; ring 3 may import all.
var libraries = map[string]struct {
	strict          bool
	allowed, reason string
}{
	"gvisor.dev/gvisor":              {true, "netstack internal/lab", "one package to change when the stack changes"},
	"github.com/containernetworking": {true, "plugin", "CNI is a dialect of one door"},
	"github.com/vishvananda":         {false, "conform internal/netns internal/nstest internal/redirect plugin tunnel", "interfaces belong to the privileged steps, never to the daemon or the switch"},
	"github.com/google/nftables":     {false, "internal/redirect", "no other rule exists anywhere"},
	"golang.zx2c4.com/wireguard":     {false, "tunnel tunnel/tunneltest", "foreign devices"},
	"go.etcd.io/bbolt":               {false, "ipam internal/daemon", "the two that keep state"},
	"github.com/miekg/dns":           {false, "internal/dns", "one parser for hostile messages"},
	"github.com/insomniacslk/dhcp":   {false, "internal/dhcp", "one parser for hostile messages"},
	"github.com/spf13/cobra":         {false, "cmd/usernet", "flags belong to programs"},
	"github.com/prometheus":          {false, "internal/daemon", "libraries count, the daemon exports"},
	"github.com/gopacket/gopacket":   {false, "netstack internal/daemon internal/sandbox cmd/usernet", "files for wireshark; packets are parsed by internal/packet"},
	"C":                              {true, "", "static binaries"},
}

// pkg is what go list says of a package.
type pkg struct {
	ImportPath, Dir, Name              string
	Imports, TestImports, XTestImports []string
	GoFiles, TestGoFiles, XTestGoFiles []string
	Export                             string // file of compiled declarations, with -export
}

// rel is the package's path inside the module, "" for the root.
func (p pkg) rel() string {
	return strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, module), "/")
}

// main reports whether the package is a program.
func (p pkg) main() bool { return p.Name == "main" }

// public reports whether other modules can import the package.
func (p pkg) public() bool {
	return !p.main() && !strings.Contains("/"+p.rel()+"/", "/internal/") && !under(p.rel(), "test")
}

// packages lists the module's packages, ring 3 included.
var packages = sync.OnceValues(func() ([]pkg, error) {
	return goList("-tags", "runtimes", "./...")
})

func goList(args ...string) ([]pkg, error) {
	cmd := exec.Command("go", append([]string{"list", "-e", "-json"}, args...)...)
	out, err := cmd.Output()
	if err != nil {
		return nil, err
	}
	var all []pkg
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return all, nil
		} else if err != nil {
			return nil, err
		}
		all = append(all, p)
	}
}

func allPackages(t *testing.T) []pkg {
	t.Helper()
	all, err := packages()
	if err != nil {
		t.Fatal(err)
	}
	if len(all) < 10 {
		t.Fatalf("go list knows only %d packages", len(all))
	}
	return all
}

// under reports whether path is dir or lies below it.
func under(path, dir string) bool { return path == dir || strings.HasPrefix(path, dir+"/") }

func contains(list, item string) bool {
	if item == "" {
		item = "."
	}
	return slices.Contains(strings.Fields(list), item)
}

func TestImportsRunOneWay(t *testing.T) {
	for _, p := range allPackages(t) {
		rel := p.rel()
		if under(rel, "test") {
			rel = "test"
		}
		row, known := imports[rel]
		if !known {
			t.Errorf("%s is not in the table of imports: add a row with what it may import, and why", p.ImportPath)
			continue
		}
		for _, i := range p.Imports {
			if !under(i, module) {
				continue
			}
			name := strings.TrimPrefix(strings.TrimPrefix(i, module), "/")
			if !contains(row.allowed, name) {
				t.Errorf("%s imports %s, but may import only [%s]: %s", rel, name, row.allowed, row.reason)
			}
			if slices.Contains(testOnly, name) && !slices.Contains(testOnly, rel) {
				t.Errorf("%s imports %s, which is for tests", rel, name)
			}
		}
	}
}

func TestLibrariesHaveOneOwner(t *testing.T) {
	for _, p := range allPackages(t) {
		if under(p.rel(), "test") {
			continue
		}
		for lib, row := range libraries {
			all := p.Imports
			if row.strict {
				all = slices.Concat(all, p.TestImports, p.XTestImports)
			}
			for _, i := range all {
				if under(i, lib) && !contains(row.allowed, p.rel()) {
					t.Errorf("%s imports %s, which is for [%s]: %s", p.rel(), i, row.allowed, row.reason)
				}
			}
		}
	}
}

// TestPluginIsThin: podman starts every plugin on every command, so what the
// CNI executable links is paid for by everyone.
func TestPluginIsThin(t *testing.T) {
	list, err := goList("-deps", "./cmd/usernet-cni")
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for _, p := range list {
		found = found || p.rel() == "cmd/usernet-cni"
		for _, heavy := range []string{"gvisor.dev/gvisor", module + "/netstack", module + "/internal/daemon", "github.com/prometheus", "go.etcd.io/bbolt", "github.com/spf13/cobra", "net/http"} {
			if under(p.ImportPath, heavy) {
				t.Errorf("usernet-cni links %s", p.ImportPath)
			}
		}
	}
	if !found {
		t.Error("there is no cmd/usernet-cni")
	}
}

func TestNoCatchAllPackages(t *testing.T) {
	for _, p := range allPackages(t) {
		for _, name := range []string{"util", "utils", "common", "types", "helpers", "misc", "pkg"} {
			if slices.Contains(strings.Split(p.rel(), "/"), name) {
				t.Errorf("%s: name the package after what it does", p.rel())
			}
		}
	}
}

// source is a parsed file.
type source struct {
	path  string // inside the module
	fset  *token.FileSet
	file  *ast.File
	lines int
}

// sources parses files of a package.
func sources(t *testing.T, p pkg, names ...string) []source {
	t.Helper()
	var all []source
	for _, name := range names {
		s := source{path: filepath.Join(p.rel(), name), fset: token.NewFileSet()}
		f, err := parser.ParseFile(s.fset, filepath.Join(p.Dir, name), nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			t.Errorf("%s: %v", s.path, err)
			continue
		}
		s.file, s.lines = f, s.fset.File(f.Pos()).LineCount()
		all = append(all, s)
	}
	return all
}

func TestSizes(t *testing.T) {
	// A test is read once from top to bottom, so it may be longer.
	const maxFile, maxFunc, maxTest = 500, 60, 80
	for _, p := range allPackages(t) {
		for _, s := range sources(t, p, slices.Concat(p.GoFiles, p.TestGoFiles, p.XTestGoFiles)...) {
			if ast.IsGenerated(s.file) {
				continue
			}
			if s.lines > maxFile {
				t.Errorf("%s has %d lines, more than %d: split it by noun", s.path, s.lines, maxFile)
			}
			for _, d := range s.file.Decls {
				f, ok := d.(*ast.FuncDecl)
				if !ok {
					continue
				}
				n, limit := s.fset.Position(f.End()).Line-s.fset.Position(f.Pos()).Line+1-rows(s.fset, f), maxFunc
				if strings.HasSuffix(s.path, "_test.go") {
					limit = maxTest
				}
				if n > limit {
					t.Errorf("%s: %s has %d lines, more than %d: name its parts", s.path, f.Name.Name, n, limit)
				}
			}
		}
	}
}

// rows counts the lines of a function's tables: slices and maps of five
// elements or more. A table is read row by row, however long it is.
func rows(fset *token.FileSet, f *ast.FuncDecl) int {
	lines := 0
	ast.Inspect(f, func(n ast.Node) bool {
		c, ok := n.(*ast.CompositeLit)
		if !ok || len(c.Elts) < 5 {
			return true
		}
		switch c.Type.(type) {
		case *ast.ArrayType, *ast.MapType:
			lines += fset.Position(c.End()).Line - fset.Position(c.Pos()).Line
			return false
		}
		return true
	})
	return lines
}
