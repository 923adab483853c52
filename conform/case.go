package conform

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Level says how much a case weighs, in the words of RFC 2119.
type Level uint8

// The levels. A plugin that fails a case of level Must does not conform.
const (
	// May is what the specification leaves open and some runtime relies on.
	May Level = iota
	// Should is what the specification recommends, or demands in words that
	// leave a way out.
	Should
	// Must is what the specification demands.
	Must
)

var levelNames = [...]string{"MAY", "SHOULD", "MUST"}

// String returns MAY, SHOULD or MUST.
func (l Level) String() string { return levelNames[l] }

// MarshalText writes the level as String does.
func (l Level) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// UnmarshalText reads what MarshalText writes.
func (l *Level) UnmarshalText(b []byte) error {
	i := slices.Index(levelNames[:], string(b))
	if i < 0 {
		return fmt.Errorf("level %q: want one of %v", b, levelNames)
	}
	*l = Level(i)
	return nil
}

// Case is one thing that the suite tries, in one version of the specification.
type Case struct {
	// Name is unique within a version: verb or subject, a slash, and what is
	// expected.
	Name string `json:"name"`
	// Version of the specification, such as "1.1.0".
	Version string `json:"version"`
	Level   Level  `json:"level"`
	// Section of the specification 1.1.0 that the case follows from, or the
	// runtime that relies on it.
	Section string `json:"section"`
	// Summary is one sentence of what a conforming plugin does.
	Summary string `json:"summary"`
}

// ID is the name with the version: what the option --run matches.
func (c Case) ID() string { return c.Name + "@" + c.Version }

// SpecVersions are the released versions of the specification that the suite
// knows, oldest first.
var SpecVersions = []string{"0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"}

// definition is a case before it is told in which versions to run.
type definition struct {
	name    string
	level   Level
	section string
	summary string
	// since and until bound the versions, both included; "" does not.
	since, until string
	// once runs the case only in the newest of the versions that are left: what
	// it looks at does not depend on the version.
	once bool
	run  func(t *trial) error
}

// versions picks those of the plugin's versions in which the case is to run.
func (d *definition) versions(supported []string) []string {
	var in []string
	for _, v := range supported {
		if (d.since == "" || atLeast(v, d.since)) && (d.until == "" || atLeast(d.until, v)) {
			in = append(in, v)
		}
	}
	if d.once && len(in) > 1 {
		return in[len(in)-1:]
	}
	return in
}

// inVersion is the case as reports name it.
func (d *definition) inVersion(version string) Case {
	return Case{Name: d.name, Version: version, Level: d.level, Section: d.section, Summary: d.summary}
}

// definitions lists the whole suite in the order of its running: what the rest
// stands on first, and what may leave a mess last.
func definitions() []definition {
	return slices.Concat(
		versionCases(), addCases(), netnsCases(), resultCases(), delCases(), orderCases(), checkCases(),
		statusCases(), gcCases(), envCases(), confCases(), parallelCases(), killCases(),
	)
}

// List returns the cases that would run for a plugin that supports the given
// versions, those whose ID run matches; nil matches all.
func List(versions []string, run *regexp.Regexp) []Case {
	var all []Case
	for _, d := range definitions() {
		for _, v := range d.versions(versions) {
			if c := d.inVersion(v); run == nil || run.MatchString(c.ID()) {
				all = append(all, c)
			}
		}
	}
	return all
}

// semver takes "1.2.3" apart; ok says that it was of that form. What follows a
// hyphen or plus is left out.
func semver(s string) (v [3]int, ok bool) {
	s, _, _ = strings.Cut(s, "+")
	s, _, _ = strings.Cut(s, "-")
	parts := strings.Split(s, ".")
	if len(parts) != len(v) {
		return v, false
	}
	for i, p := range parts {
		n, err := strconv.ParseUint(p, 10, 16)
		if err != nil {
			return v, false
		}
		v[i] = int(n)
	}
	return v, true
}

// compareVersions orders versions; one that is none comes first.
func compareVersions(a, b string) int {
	x, _ := semver(a)
	y, _ := semver(b)
	return slices.Compare(x[:], y[:])
}

// atLeast reports whether version v is the other one or newer.
func atLeast(v, other string) bool { return compareVersions(v, other) >= 0 }

// known returns those versions of a list that the suite knows, oldest first.
func known(versions []string) []string {
	var in []string
	for _, v := range SpecVersions {
		if slices.Contains(versions, v) {
			in = append(in, v)
		}
	}
	return in
}

// compact prints a value as JSON on one line, cut where nobody would read on.
func compact(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Sprint(v)
	}
	return cut(string(b))
}

// cut shortens text that is quoted in a message.
func cut(s string) string {
	const most = 400
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}
