package conform

import (
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestCasesAreWellFormed: names are unique, and every case says what it expects
// and why.
func TestCasesAreWellFormed(t *testing.T) {
	name := regexp.MustCompile(`^[A-Za-z]+(/[A-Za-z0-9_.\-]+){1,3}$`)
	seen := make(map[string]bool)
	for _, d := range definitions() {
		if !name.MatchString(d.name) || seen[d.name] {
			t.Errorf("case %q: twice, or not of words and slashes", d.name)
		}
		seen[d.name] = true
		if d.section == "" || d.summary == "" || d.run == nil {
			t.Errorf("case %s is incomplete", d.name)
		}
		if strings.HasSuffix(d.summary, ".") {
			t.Errorf("case %s: the summary ends with a full stop", d.name)
		}
		if len(d.versions(SpecVersions)) == 0 {
			t.Errorf("case %s is for no version", d.name)
		}
	}
}

func TestEveryMustOfAVerbIsThere(t *testing.T) {
	for _, verb := range []string{"VERSION", "ADD", "DEL", "CHECK", "GC", "STATUS"} {
		musts := 0
		for _, c := range List(SpecVersions, regexp.MustCompile("^"+verb+"/")) {
			if c.Level == Must {
				musts++
			}
		}
		if musts == 0 {
			t.Errorf("no case of level MUST for %s", verb)
		}
	}
}

func TestVersionsOfACase(t *testing.T) {
	for _, test := range []struct {
		d         definition
		supported string
		want      string
	}{
		{definition{}, "0.1.0 0.4.0 1.1.0", "0.1.0 0.4.0 1.1.0"},
		{definition{once: true}, "0.1.0 0.4.0 1.0.0", "1.0.0"},
		{definition{since: "0.4.0"}, "0.3.1 0.4.0 1.0.0", "0.4.0 1.0.0"},
		{definition{until: "0.3.1"}, "0.3.0 0.3.1 0.4.0", "0.3.0 0.3.1"},
		{definition{since: "0.3.0", until: "1.0.0", once: true}, "0.2.0 0.4.0 1.1.0", "0.4.0"},
		{definition{since: "1.1.0"}, "0.4.0 1.0.0", ""},
	} {
		if got := test.d.versions(strings.Fields(test.supported)); !slices.Equal(got, strings.Fields(test.want)) {
			t.Errorf("since %q until %q once %v of %s: %v, want %s", test.d.since, test.d.until, test.d.once, test.supported, got, test.want)
		}
	}
}

func TestSemver(t *testing.T) {
	for text, ok := range map[string]bool{"0.1.0": true, "1.10.2": true, "1.0.0-rc1": true, "1.0": false, "1.0.0.0": false, "": false, "a.b.c": false, "-1.0.0": false, "1..0": false} {
		if _, got := semver(text); got != ok {
			t.Errorf("semver(%q) = %v", text, got)
		}
	}
	if !atLeast("1.10.0", "1.9.0") || atLeast("0.3.1", "0.4.0") || !atLeast("0.4.0", "0.4.0") {
		t.Error("versions are not compared by number")
	}
}

func TestConfPicksThePlugin(t *testing.T) {
	for name, test := range map[string]struct{ conf, typ, network, fault string }{
		"one plugin":      {`{"name":"web","type":"lab","capabilities":{"ips":true}}`, "lab", "web", ""},
		"list":            {`{"name":"web","plugins":[{"type":"other"},{"type":"lab"}]}`, "lab", "web", ""},
		"list of others":  {`{"name":"web","plugins":[{"type":"other"}]}`, "other", "web", ""},
		"no name":         {`{"type":"lab"}`, "lab", "conform", ""},
		"directory":       {`{"type":"lab","name":"${CNI_CONFORM_DIR}"}`, "lab", "/tmp/x", ""},
		"empty list":      {`{"name":"web","plugins":[]}`, "", "", "no plugin"},
		"no type":         {`{"name":"web"}`, "", "", `"type"`},
		"no JSON":         {`name: web`, "", "", "decode"},
		"no JSON at all":  {``, "", "", "decode"},
		"type of a digit": {`{"type":7}`, "", "", `"type"`},
	} {
		got, err := parseConf([]byte(test.conf), "/opt/cni/bin/lab", "/tmp/x")
		if test.fault != "" {
			if err == nil || !strings.Contains(err.Error(), test.fault) {
				t.Errorf("%s: %v, want %s named", name, err, test.fault)
			}
			continue
		}
		if err != nil || got["type"] != test.typ || got["name"] != test.network || got["capabilities"] != nil {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

func TestConfigIsJudged(t *testing.T) {
	_, err := Config{Plugin: "case_test.go", Parallel: 65, Kills: 2000, Versions: []string{"7.0.0"}, CallLimit: 1}.withDefaults()
	for _, want := range []string{"not an executable", "parallel", "kills", `"7.0.0"`, "call limit"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not name %s", err, want)
		}
	}
	if _, err := (Config{}).withDefaults(); err == nil {
		t.Error("no plugin is no fault")
	}
	c, err := Config{Plugin: "/bin/sh", Kills: -1}.withDefaults()
	if err != nil || c.Kills != -1 || c.Parallel != 8 || c.Path[0] != "/bin" || c.Seed == 0 {
		t.Errorf("defaults %+v, %v", c, err)
	}
}
