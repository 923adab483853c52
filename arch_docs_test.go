package usernet_test

import (
	"go/ast"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestEveryPackageIsExplained wants exactly one package comment, in doc.go.
func TestEveryPackageIsExplained(t *testing.T) {
	for _, p := range allPackages(t) {
		if len(p.GoFiles) == 0 {
			continue // tests alone
		}
		var places []string
		for _, s := range sources(t, p, p.GoFiles...) {
			if s.file.Doc != nil {
				places = append(places, filepath.Base(s.path))
			}
		}
		if !slices.Equal(places, []string{"doc.go"}) {
			t.Errorf("%s has its package comment in %q, want doc.go alone", p.ImportPath, places)
		}
	}
}

// reference is an identifier in a comment: [Pool], [*OpError], [Pool.Acquire],
// [ipam.Pool]. Lower-case words without a dot may be English.
var reference = regexp.MustCompile(`\[\*?([A-Z]\w*(?:\.\w+)?|[a-z]\w*\.[A-Z]\w*(?:\.\w+)?)\](?:[^:(]|$)`)

// TestDocumentedNamesExist holds the theory of operation against the code:
// prose that names what is gone misleads.
func TestDocumentedNamesExist(t *testing.T) {
	all := allPackages(t)
	names := make(map[string]map[string]bool) // by the package's path inside the module
	for _, p := range all {
		names[p.rel()] = declared(t, p)
	}
	for _, p := range all {
		if !slices.Contains(p.GoFiles, "doc.go") {
			continue
		}
		for _, s := range sources(t, p, "doc.go") {
			for _, m := range reference.FindAllStringSubmatch(text(s.file.Doc), -1) {
				if !known(p, m[1], all, names) {
					t.Errorf("%s speaks of [%s], which does not exist", s.path, m[1])
				}
			}
		}
	}
}

// text gives a comment without its indented blocks, which hold code and
// pictures.
func text(doc *ast.CommentGroup) string {
	var b strings.Builder
	for line := range strings.Lines(doc.Text()) {
		if !strings.HasPrefix(line, "\t") {
			b.WriteString(line)
		}
	}
	return b.String()
}

// known looks a reference up in the package itself or, if it is qualified, in
// that package of ours. What the standard library has is not looked up.
func known(p pkg, ref string, all []pkg, names map[string]map[string]bool) bool {
	if names[p.rel()][ref] {
		return true
	}
	qualifier, name, ok := strings.Cut(ref, ".")
	if !ok || qualifier == strings.ToUpper(qualifier[:1])+qualifier[1:] {
		return false
	}
	for _, other := range all {
		if other.Name == qualifier {
			return names[other.rel()][name]
		}
	}
	return true
}

// declared lists a package's top-level names, and methods and fields as
// Type.Name.
func declared(t *testing.T, p pkg) map[string]bool {
	t.Helper()
	names := make(map[string]bool)
	for _, s := range sources(t, p, p.GoFiles...) {
		for _, d := range s.file.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				names[receiver(d)+d.Name.Name] = true
			case *ast.GenDecl:
				if d.Tok != token.IMPORT {
					declaredSpecs(d, names)
				}
			}
		}
	}
	return names
}

// receiver gives "Type." for a method and nothing for a function.
func receiver(d *ast.FuncDecl) string {
	if d.Recv == nil {
		return ""
	}
	typ := d.Recv.List[0].Type
	for {
		switch x := typ.(type) {
		case *ast.StarExpr:
			typ = x.X
		case *ast.IndexExpr:
			typ = x.X
		case *ast.Ident:
			return x.Name + "."
		default:
			return ""
		}
	}
}

func declaredSpecs(d *ast.GenDecl, names map[string]bool) {
	for _, spec := range d.Specs {
		switch x := spec.(type) {
		case *ast.ValueSpec:
			for _, n := range x.Names {
				names[n.Name] = true
			}
		case *ast.TypeSpec:
			names[x.Name.Name] = true
			var fields *ast.FieldList
			switch y := x.Type.(type) {
			case *ast.StructType:
				fields = y.Fields
			case *ast.InterfaceType:
				fields = y.Methods
			default:
				continue
			}
			for _, f := range fields.List {
				for _, n := range f.Names {
					names[x.Name.Name+"."+n.Name] = true
				}
			}
		}
	}
}

// link is a relative link in Markdown, without its fragment.
var link = regexp.MustCompile(`\]\(([^):#?]+)(?:#[^)]*)?\)`)

// TestDocumentsLinkToWhatExists follows the relative links of all documents.
func TestDocumentsLinkToWhatExists(t *testing.T) {
	var documents []string
	for _, pattern := range []string{"*.md", "*/*.md", "*/*/*.md"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		documents = append(documents, found...)
	}
	for _, want := range []string{"README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"} {
		if !slices.Contains(documents, want) {
			t.Errorf("there is no %s", want)
		}
	}
	for _, doc := range documents {
		b, err := os.ReadFile(doc)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range link.FindAllStringSubmatch(string(b), -1) {
			if _, err := os.Stat(filepath.Join(filepath.Dir(doc), m[1])); err != nil {
				t.Errorf("%s links to %s: %v", doc, m[1], err)
			}
		}
	}
}
