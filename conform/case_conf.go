package conform

import (
	"encoding/json"
	"fmt"
)

const sectionConf = "§3 Deriving request configuration"

// badConf is a configuration that cannot be right.
type badConf struct {
	name string
	// text makes it of the right one.
	text  func(right object) string
	level Level // that it is refused at all
	codes []uint
	// only names the verbs it is tried on; none: all.
	only []string
}

func badConfs() []badConf {
	fixed := func(s string) func(object) string { return func(object) string { return s } }
	with := func(more object) func(object) string {
		return func(right object) string { return encode(right.with(more)) }
	}
	return []badConf{
		{"empty", fixed(""), Must, []uint{6}, nil},
		{"white-space", fixed(" \n"), Must, []uint{6}, nil},
		{"truncated", func(right object) string { s := encode(right); return s[:len(s)-2] }, Must, []uint{6}, nil},
		{"no-json", fixed("cniVersion: 1.0.0\n"), Must, []uint{6}, nil},
		{"array", func(right object) string { return "[" + encode(right) + "]" }, Must, []uint{6}, nil},
		{"null", fixed("null"), Must, []uint{1, 6, 7}, nil}, // an object without keys, to some
		{"trailing", func(right object) string { return encode(right) + "}" }, Must, []uint{6}, nil},
		{"name-number", with(object{"name": 7}), Must, []uint{6, 7}, nil},
		{"cniVersion-number", with(object{"cniVersion": 1.0}), Must, []uint{6}, nil},
		{"cniVersion-unknown", with(object{"cniVersion": "9.9.9"}), Must, []uint{1}, nil},
		{"cniVersion-garbage", with(object{"cniVersion": "newest"}), Must, []uint{1, 6}, nil},
		{"no-name", with(object{"name": nil}), Must, []uint{7}, nil},
		{"name-empty", with(object{"name": ""}), Must, []uint{7}, nil},
		{"name-path", with(object{"name": "../conform"}), Must, []uint{7}, nil},
		{"name-space", with(object{"name": "con form"}), Must, []uint{7}, nil},
		{"no-type", with(object{"type": nil}), May, []uint{7}, []string{"ADD"}},
		{"dns-string", with(object{"dns": "192.0.2.53"}), Should, []uint{6, 7}, []string{"ADD"}},
		{"prevResult-string", with(object{"prevResult": "none"}), Should, []uint{6, 7}, []string{"ADD", "CHECK"}},
		{"runtimeConfig-string", with(object{"runtimeConfig": "none"}), Should, []uint{6, 7}, []string{"ADD"}},
	}
}

// confCases make two cases of each fault: that it is refused, and that the error
// says why.
func confCases() []definition {
	var all []definition
	for _, b := range badConfs() {
		for _, verb := range []string{"ADD", "DEL", "CHECK", "GC", "STATUS"} {
			if !b.appliesTo(verb) {
				continue
			}
			since := map[string]string{"CHECK": checkSince, "GC": latest, "STATUS": latest}[verb]
			name := "conf/" + verb + "/" + b.name
			all = append(all, definition{name: name, level: b.level, section: sectionConf, since: since, once: true,
				summary: fmt.Sprintf("%s of a configuration with the fault %q fails and changes nothing", verb, b.name), run: b.tried(verb, (*Call).refused)})
			if b.level == May {
				continue
			}
			all = append(all, definition{name: name + "/code", level: Should, section: sectionError, since: since, once: true,
				summary: fmt.Sprintf("the error of the fault %q is %s", b.name, orList(b.codes)), run: b.tried(verb, func(c *Call) error {
					return c.code(b.codes...)
				})})
		}
	}
	return all
}

func (b badConf) appliesTo(verb string) bool {
	for _, v := range b.only {
		if v == verb {
			return true
		}
	}
	return len(b.only) == 0
}

// tried makes a case of one fault in one verb's configuration. All verbs but
// ADD meet an attachment, which they must not touch.
func (b badConf) tried(verb string, judge func(*Call) error) func(t *trial) error {
	return func(t *trial) error {
		a, err := t.aside(verb != "ADD")
		if err != nil {
			return err
		}
		about := a
		if verb == "GC" || verb == "STATUS" {
			about = nil
		}
		r := t.request(verb, about)
		if err := r.text(b.text(r.conf)).expect(judge); err != nil {
			return err
		}
		if verb == "ADD" {
			return a.c.untouched()
		}
		return t.alive(a)
	}
}

// encode prints a configuration, which was decoded from JSON or is of literals.
func encode(o object) string {
	b, err := json.Marshal(o)
	if err != nil {
		return err.Error()
	}
	return string(b)
}
