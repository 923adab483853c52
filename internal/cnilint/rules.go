package cnilint

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/usernet/usernet/internal/nearest"
)

// wantVersions is what works with every runtime: libcni before 1.2 reads
// cniVersion alone, and newer ones take the highest of both that they know.
const wantVersions = `"cniVersion": "1.0.0", "cniVersions": ["0.4.0", "1.0.0", "1.1.0"]`

// version judges the choice of specification versions.
func (j *judge) version(l *list, p *plugin) {
	spoken := l.version
	if spoken == "" {
		spoken = "0.1.0" // SPEC.md, of a configuration without
	}
	if len(j.facts.Versions) > 0 {
		for _, v := range append([]string{spoken}, l.versions...) {
			if !slices.Contains(j.facts.Versions, v) {
				j.about(l, Error, "version", "cniVersion",
					fmt.Sprintf("ADD fails with error 1 in runtimes that choose %s: usernet speaks %s", v, strings.Join(j.facts.Versions, ", ")),
					"write "+wantVersions)
				return
			}
		}
	}
	if p.typ != Type {
		return // a runtime made the list for the plugin that this one stands for
	}
	fix := "write " + wantVersions
	switch {
	case spoken == "1.1.0":
		j.about(l, Warning, "version", "cniVersion",
			`podman 4 and other runtimes with libcni before 1.2 cannot use it: unsupported CNI result version "1.1.0"`, fix)
	case l.version == "":
		j.about(l, Warning, "version", "cniVersion",
			"without it version 0.1.0 is spoken: one address per family in the result, and CHECK, GC and STATUS are never asked", fix)
	case !slices.Contains(l.versions, "1.1.0"):
		j.about(l, Warning, "version", "cniVersions",
			fmt.Sprintf("version %s is spoken even by runtimes that know 1.1.0: they never ask STATUS, so a node whose daemon is down looks ready, nor GC", spoken), fix)
	}
}

// spoken finds executables, of IPAM plugins most of all, that refuse a version of
// the specification in which runtimes will speak to the list's plugins. Of
// usernet's own the rule above tells.
func (j *judge) spoken(l *list) {
	versions := append([]string{l.version}, l.versions...)
	judge := func(p *plugin, key, typ string) {
		b := j.facts.Binaries[typ]
		if b.Ours || len(b.Versions) == 0 {
			return
		}
		for _, v := range versions {
			if v == "" || slices.Contains(b.Versions, v) {
				continue
			}
			fix := fmt.Sprintf("install a release of %s that speaks %s, or take %s out of the list", typ, v, v)
			if p.typ == Type && typ == "host-local" {
				fix = fmt.Sprintf(`write "type": %q into "ipam", whose keys are host-local's, or %s`, Type, fix)
			}
			j.at(p, Error, "plugin-version", key, fmt.Sprintf(
				"ADD fails with error 1 in runtimes that choose %s: the versions that %s speaks end with %s", v, b.Path, b.Versions[len(b.Versions)-1]), fix)
			return
		}
	}
	for _, p := range l.plugins {
		judge(p, "type", p.typ)
		if j.delegates(p) {
			judge(p, "ipam.type", p.ipam.Type)
		}
	}
}

// listKeys are the keys of a list that some runtime reads. What others add
// there (nerdctlID) no plugin sees.
var listKeys = []string{"cniVersion", "cniVersions", "name", "plugins", "disableCheck", "disableGC", "loadOnlyInlinedPlugins", "args"}

// misplaced finds keys of a plugin beside the plugins, where nothing reads them.
func (j *judge) misplaced(l *list) {
	if _, ok := l.keys["plugins"]; !ok {
		return
	}
	for _, key := range slices.Sorted(maps.Keys(l.keys)) {
		if slices.Contains(j.facts.Keys, key) && !slices.Contains(listKeys, key) {
			j.about(l, Warning, "misplaced-key", key,
				"it has no effect there: runtimes give plugins only what is in their own entry",
				fmt.Sprintf("move %q into the entry of type %s", key, Type))
		}
	}
}

// strict judges the keys of a plugin of type usernet, which fails on those that
// it does not know.
func (j *judge) strict(p *plugin) {
	known := maps.Clone(p.keys)
	for _, key := range slices.Sorted(maps.Keys(p.keys)) {
		if len(j.facts.Keys) == 0 || slices.Contains(j.facts.Keys, key) || strings.HasPrefix(key, "cni.dev/") {
			continue
		}
		delete(known, key)
		fix := fmt.Sprintf("delete %q; the plugin knows %s", key, strings.Join(j.facts.Keys, ", "))
		if n := nearest.Word(key, j.facts.Keys); n != "" {
			fix = fmt.Sprintf("write %q", n)
			if _, taken := p.keys[n]; taken {
				fix = fmt.Sprintf("delete %q; %q is there as well", key, n)
			}
		}
		j.at(p, Error, "unknown-key", key, "ADD fails with error 2: usernet has no key of this name", fix)
	}
	if n := len(p.socket()); n > maxSocket {
		delete(known, "socket")
		j.at(p, Error, "socket", "socket", fmt.Sprintf("ADD fails: the path is %d bytes long, the kernel allows %d for a socket (unix(7))", n, maxSocket),
			"choose a shorter path, as /run/usernet/usernet.sock")
	}
	j.value(p, known)
}

// value tells what the plugin says of keys that it knows.
func (j *judge) value(p *plugin, keys map[string]json.RawMessage) {
	if err := j.ask(p, keys); err != nil {
		j.at(p, Error, "value", "", "ADD fails: "+err.Error(), "correct the value")
	}
}

// maxSocket is the length of sun_path of unix(7) less its terminating zero.
const maxSocket = 107

// ask has the plugin judge keys as it would get them.
func (j *judge) ask(p *plugin, keys map[string]json.RawMessage) error {
	if j.facts.Judge == nil {
		return nil
	}
	conf := maps.Clone(keys)
	for _, key := range []string{"name", "cniVersion"} {
		delete(conf, key)
	}
	// The list's faults are told for the list.
	conf["name"], conf["cniVersion"] = json.RawMessage(`"usernet"`), json.RawMessage(`"1.0.0"`)
	if p.list.name != "" {
		conf["name"] = p.list.keys["name"]
	}
	text, err := json.Marshal(conf)
	if err != nil {
		return err
	}
	return j.facts.Judge(text)
}

// samples are arguments of the capabilities, as runtimes send them. The plugin
// is asked what it says to them, so that what it does not honour is its own
// word.
var samples = map[string]string{
	"portMappings": `[{"hostPort":80,"containerPort":80,"protocol":"tcp"}]`,
	"bandwidth":    `{"ingressRate":8000000,"ingressBurst":8000000,"egressRate":8000000,"egressBurst":8000000}`,
	"ips":          `["10.84.0.9"]`,
	"mac":          `"02:00:00:00:00:09"`,
	"aliases":      `["web"]`,
	"dns":          `{"servers":["10.84.0.1"],"searches":["example.org"],"options":["ndots:1"]}`,
	"ipRanges":     `[[{"subnet":"10.84.0.0/24"}]]`,
}

// honours reports whether the plugin acts on a capability's argument.
func (j *judge) honours(capability string) bool {
	sample, known := samples[capability]
	if !known {
		sample = `{"a":"b"}` // what the plugin knows and ignores takes anything
	}
	if j.facts.Judge == nil {
		return known
	}
	conf, err := json.Marshal(map[string]any{
		"name": Type, "cniVersion": "1.0.0", "type": Type,
		"runtimeConfig": map[string]json.RawMessage{capability: json.RawMessage(sample)},
	})
	return err == nil && j.facts.Judge(conf) == nil
}

// capabilities compares what the list declares with what the plugin honours:
// runtimes withhold what is not declared, and say nothing.
func (j *judge) capabilities(p *plugin) {
	missing := slices.DeleteFunc(slices.Sorted(maps.Keys(samples)), func(c string) bool { return !j.honours(c) })
	useful := slices.Clone(missing)
	for _, c := range slices.Sorted(maps.Keys(p.capabilities)) {
		if !p.declares(c) {
			continue
		}
		key, meant := "capabilities."+c, nearest.Word(c, useful)
		switch {
		case meant != "":
			if meant != c {
				j.at(p, Error, "capability", key, fmt.Sprintf("runtimes know no capability of this name, so they withhold what %q would bring", meant), fmt.Sprintf("write %q", meant))
			}
			missing = slices.DeleteFunc(missing, func(m string) bool { return m == meant })
		case !j.honours(c):
			j.at(p, Warning, "capability", key, "usernet cannot honour it: ADD fails for every container that asks for it", fmt.Sprintf("delete %q from the capabilities", c))
		}
	}
	if len(missing) == 0 {
		return
	}
	what := "not declared, so runtimes withhold them without an error: " + strings.Join(missing, ", ")
	if slices.Contains(missing, "portMappings") {
		what += "; without portMappings no port is published"
	}
	j.at(p, Warning, "capability", "capabilities", what,
		fmt.Sprintf(`add "%s": true to the capabilities`, strings.Join(missing, `": true, "`)))
}
