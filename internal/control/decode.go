package control

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"reflect"
	"slices"
	"sort"
	"strings"

	"github.com/usernet/usernet/internal/nearest"
)

// DecodeStrict decodes one JSON object into v. A field that v does not have is
// an error that names it and the nearest field that exists, so that a slip of
// the pen is not silently a default. Errors are CodeInvalid.
func DecodeStrict(data []byte, v any) error {
	if len(bytes.TrimSpace(data)) == 0 {
		return Errorf(CodeInvalid, "the body is empty; want a JSON object")
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return decodeError(err, v)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return Errorf(CodeInvalid, "more data follows the JSON object at byte %d", dec.InputOffset())
	}
	return nil
}

func decodeError(err error, v any) error {
	var syntax *json.SyntaxError
	var typ *json.UnmarshalTypeError
	switch {
	case errors.As(err, &syntax):
		return Errorf(CodeInvalid, "malformed JSON at byte %d: %v", syntax.Offset, err)
	case errors.Is(err, io.ErrUnexpectedEOF):
		return Errorf(CodeInvalid, "malformed JSON: it ends too early")
	case errors.As(err, &typ):
		return Errorf(CodeInvalid, "field %q: want %s, got %s", typ.Field, jsonKind(typ.Type), typ.Value)
	}
	// encoding/json has no type for this one.
	if name, ok := strings.CutPrefix(err.Error(), "json: unknown field "); ok {
		name = strings.Trim(name, `"`)
		known := fieldNames(reflect.TypeOf(v), map[reflect.Type]bool{})
		return Errorf(CodeInvalid, "unknown field %q; %s", name, Suggest(name, known))
	}
	return Errorf(CodeInvalid, "malformed JSON: %v", strings.TrimPrefix(err.Error(), "json: "))
}

// jsonKind names a Go type as a JSON author knows it.
func jsonKind(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Bool:
		return "true or false"
	case reflect.String:
		return "a string"
	case reflect.Slice, reflect.Array:
		return "a list"
	case reflect.Struct, reflect.Map:
		return "an object"
	case reflect.Pointer:
		return jsonKind(t.Elem())
	}
	if t.Kind() >= reflect.Int && t.Kind() <= reflect.Float64 {
		return "a number (" + t.Kind().String() + ")"
	}
	return t.String()
}

// fieldNames lists the JSON names of t's fields and of those below.
func fieldNames(t reflect.Type, seen map[reflect.Type]bool) []string {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct || seen[t] {
		return nil
	}
	seen[t] = true
	var names []string
	for i := range t.NumField() {
		f := t.Field(i)
		if name, _, _ := strings.Cut(f.Tag.Get("json"), ","); name != "" && name != "-" {
			names = append(names, name)
		}
		if f.IsExported() {
			names = append(names, fieldNames(f.Type, seen)...)
		}
	}
	return names
}

// Suggest says what may have been meant by name: the nearest of known when one
// is near, else all of them.
func Suggest(name string, known []string) string {
	// The name itself may be known elsewhere in the document.
	best := nearest.Word(name, slices.DeleteFunc(slices.Clone(known), func(k string) bool { return k == name }))
	if best != "" {
		return "did you mean \"" + best + "\"?"
	}
	sorted := append([]string(nil), known...)
	sort.Strings(sorted)
	return "known: " + strings.Join(sorted, ", ")
}
