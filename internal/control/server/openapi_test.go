package server

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"

	"github.com/usernet/usernet/internal/control"
)

// document is as much of OpenAPI 3.1 as openapi.yaml uses.
type document struct {
	OpenAPI    string                     `json:"openapi"`
	Info       map[string]string          `json:"info"`
	Servers    []map[string]string        `json:"servers"`
	Paths      map[string]json.RawMessage `json:"paths"`
	Components struct {
		Responses map[string]json.RawMessage `json:"responses"`
		Schemas   map[string]schema          `json:"schemas"`
	} `json:"components"`
}

type schema struct {
	Ref                  string            `json:"$ref"`
	Type                 string            `json:"type"`
	Format               string            `json:"format"`
	Description          string            `json:"description"`
	Required             []string          `json:"required"`
	Properties           map[string]schema `json:"properties"`
	AdditionalProperties json.RawMessage   `json:"additionalProperties"`
	Items                *schema           `json:"items"`
	Enum                 []string          `json:"enum"`
	Minimum              *int              `json:"minimum"`
	Maximum              *int              `json:"maximum"`
	Examples             []string          `json:"examples"`
}

type operation struct {
	Summary    string `json:"summary"`
	Parameters []struct {
		Name        string `json:"name"`
		In          string `json:"in"`
		Description string `json:"description"`
		Required    bool   `json:"required"`
		Schema      schema `json:"schema"`
	} `json:"parameters"`
	RequestBody *struct {
		Required bool               `json:"required"`
		Content  map[string]content `json:"content"`
	} `json:"requestBody"`
	Responses map[string]struct {
		Ref         string             `json:"$ref"`
		Description string             `json:"description"`
		Content     map[string]content `json:"content"`
	} `json:"responses"`
}

type content struct {
	Schema schema `json:"schema"`
}

func readDocument(t *testing.T) document {
	t.Helper()
	var doc document
	if err := yaml.UnmarshalStrict(openAPI, &doc); err != nil {
		t.Fatalf("openapi.yaml: %v", err)
	}
	if doc.OpenAPI != "3.1.0" || doc.Info["version"] != fmt.Sprint(control.APIVersion) {
		t.Errorf("openapi %s, API version %s; want 3.1.0 and %d", doc.OpenAPI, doc.Info["version"], control.APIVersion)
	}
	return doc
}

const schemaPrefix = "#/components/schemas/"

// TestOpenAPIHasTheRoutes holds the document's operations against the route
// table, both ways: methods, bodies, parameters.
func TestOpenAPIHasTheRoutes(t *testing.T) {
	doc := readDocument(t)
	type summary struct {
		Request, Reply string
		Query          []string
	}
	want := map[string]summary{}
	for _, rt := range routes {
		s := summary{Query: slices.Sorted(slices.Values(rt.query))}
		if rt.request != nil {
			s.Request = reflect.TypeOf(rt.request).Name()
		}
		if rt.reply != nil {
			s.Reply = reflect.TypeOf(rt.reply).Name()
		}
		want[rt.method+" "+rt.pattern] = s
	}
	got := map[string]summary{}
	for path, raw := range doc.Paths {
		var methods map[string]json.RawMessage
		if err := json.Unmarshal(raw, &methods); err != nil {
			t.Fatal(err)
		}
		checkPathParameters(t, path, methods["parameters"])
		delete(methods, "parameters")
		for method, raw := range methods {
			var op operation
			if err := control.DecodeStrict(raw, &op); err != nil {
				t.Fatalf("%s %s: %v", method, path, err)
			}
			var s summary
			for _, p := range op.Parameters {
				s.Query = append(s.Query, p.Name)
			}
			sort.Strings(s.Query)
			if op.RequestBody != nil {
				s.Request = strings.TrimPrefix(op.RequestBody.Content["application/json"].Schema.Ref, schemaPrefix)
			}
			s.Reply = strings.TrimPrefix(op.Responses["200"].Content["application/json"].Schema.Ref, schemaPrefix)
			if op.Summary == "" || op.Responses["default"].Ref != "#/components/responses/Error" {
				t.Errorf("%s %s: no summary or no default reply", method, path)
			}
			got[strings.ToUpper(method)+" "+path] = s
		}
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("routes (-) and openapi.yaml (+) differ:\n%s", d)
	}
}

func checkPathParameters(t *testing.T, path string, raw json.RawMessage) {
	t.Helper()
	var params []struct {
		Name string `json:"name"`
	}
	if raw != nil {
		if err := json.Unmarshal(raw, &params); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range params {
		if !strings.Contains(path, "{"+p.Name+"}") {
			t.Errorf("%s: parameter %s is not in the path", path, p.Name)
		}
	}
	if n := strings.Count(path, "{"); n != len(params) {
		t.Errorf("%s: %d parameters are described, %d are in the path", path, len(params), n)
	}
}

// TestOpenAPIHasTheTypes holds the document's schemas against the Go types
// that the routes use, both ways: fields, their kinds, which are required.
func TestOpenAPIHasTheTypes(t *testing.T) {
	doc := readDocument(t)
	requests, types := map[reflect.Type]bool{}, map[reflect.Type]bool{}
	for _, rt := range routes {
		if rt.request != nil {
			collect(reflect.TypeOf(rt.request), requests)
			collect(reflect.TypeOf(rt.request), types)
		}
		if rt.reply != nil {
			collect(reflect.TypeOf(rt.reply), types)
		}
	}
	collect(reflect.TypeFor[control.ErrorReply](), types)
	for ty := range types {
		s, ok := doc.Components.Schemas[ty.Name()]
		if !ok {
			t.Errorf("openapi.yaml lacks schema %s", ty.Name())
			continue
		}
		delete(doc.Components.Schemas, ty.Name())
		if closed := string(s.AdditionalProperties) == "false"; closed != requests[ty] {
			t.Errorf("%s: additionalProperties false is %v, want it for requests only", ty.Name(), closed)
		}
		props, required := map[string]string{}, []string{}
		goFields(ty, props, &required)
		got := map[string]string{}
		for name, p := range s.Properties {
			got[name] = describe(p)
		}
		if d := cmp.Diff(props, got); d != "" {
			t.Errorf("%s: Go (-) and openapi.yaml (+) differ:\n%s", ty.Name(), d)
		}
		slices.Sort(required)
		slices.Sort(s.Required)
		if !slices.Equal(required, s.Required) {
			t.Errorf("%s: required %v, Go has %v", ty.Name(), s.Required, required)
		}
	}
	for name := range doc.Components.Schemas {
		t.Errorf("openapi.yaml has schema %s, which no route uses", name)
	}
}

// leaves are the types that JSON writes as one value.
var leaves = map[reflect.Type]string{
	reflect.TypeFor[netip.Addr]():            "string",
	reflect.TypeFor[netip.Prefix]():          "string",
	reflect.TypeFor[netip.AddrPort]():        "string",
	reflect.TypeFor[time.Time]():             "string date-time",
	reflect.TypeFor[control.Code]():          "string " + strings.Join(codeNames(), ","),
	reflect.TypeFor[control.LinkState]():     "string attaching,attached,lost",
	reflect.TypeFor[control.NetworkSource](): "string api,config,attach",
}

func codeNames() []string {
	var all []string
	for c := range httpStatus {
		all = append(all, string(c))
	}
	sort.Strings(all)
	return all
}

func collect(t reflect.Type, into map[reflect.Type]bool) {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct || leaves[t] != "" || into[t] {
		return
	}
	into[t] = true
	for i := range t.NumField() {
		if f := t.Field(i); f.Anonymous {
			for j := range f.Type.NumField() {
				collect(f.Type.Field(j).Type, into)
			}
		} else {
			collect(f.Type, into)
		}
	}
}

func goFields(t reflect.Type, props map[string]string, required *[]string) {
	for i := range t.NumField() {
		f := t.Field(i)
		if f.Anonymous {
			goFields(f.Type, props, required)
			continue
		}
		name, option, _ := strings.Cut(f.Tag.Get("json"), ",")
		props[name] = goKind(f.Type)
		if option == "" {
			*required = append(*required, name)
		}
	}
}

func goKind(t reflect.Type) string {
	if s, ok := leaves[t]; ok {
		return s
	}
	switch t.Kind() {
	case reflect.Bool:
		return "boolean"
	case reflect.String:
		return "string"
	case reflect.Int, reflect.Int64:
		return "integer"
	case reflect.Uint64:
		return "integer 0.."
	case reflect.Uint16:
		return "integer 0..65535"
	case reflect.Pointer:
		return goKind(t.Elem())
	case reflect.Slice:
		return "[]" + goKind(t.Elem())
	case reflect.Map:
		return "map of " + goKind(t.Elem())
	}
	return t.Name()
}

// describe is goKind of a schema.
func describe(s schema) string {
	switch {
	case s.Ref != "":
		return strings.TrimPrefix(s.Ref, schemaPrefix)
	case s.Type == "array":
		return "[]" + describe(*s.Items)
	case s.Type == "object":
		var of schema
		if json.Unmarshal(s.AdditionalProperties, &of) != nil {
			return "object"
		}
		return "map of " + describe(of)
	case len(s.Enum) > 0:
		return s.Type + " " + strings.Join(s.Enum, ",")
	case s.Format != "":
		return s.Type + " " + s.Format
	case s.Maximum != nil:
		return fmt.Sprintf("%s %d..%d", s.Type, *s.Minimum, *s.Maximum)
	case s.Minimum != nil:
		return fmt.Sprintf("%s %d..", s.Type, *s.Minimum)
	}
	return s.Type
}
