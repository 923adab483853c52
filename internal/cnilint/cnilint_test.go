package cnilint

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// plain are facts of a machine in order, and of a plugin that honours all of
// the capabilities that have samples.
func plain() Facts {
	return Facts{
		Keys:     []string{"capabilities", "device", "ipam", "mtu", "name", "cniVersion", "socket", "type", "autostart", "publish"},
		Versions: []string{"0.1.0", "0.4.0", "1.0.0", "1.1.0"},
		Judge: func(conf []byte) error {
			for _, refused := range []string{`"infinibandGUID":{`, `"mtu":40,`} {
				if strings.Contains(string(conf), refused) {
					return errors.New("refused " + refused)
				}
			}
			return nil
		},
		PublishMode: "listen",
	}
}

// brief gives what matters of findings: severity, rule and place.
func brief(found []Finding) []string {
	var all []string
	for _, f := range found {
		if f.Severity != OK {
			all = append(all, strings.TrimSpace(string(f.Severity)+" "+f.Check+" "+f.Where()))
		}
	}
	return all
}

func one(path, text string) []File { return []File{{Path: path, Data: []byte(text)}} }

func read(t *testing.T, names ...string) []File {
	t.Helper()
	var files []File
	for _, n := range names {
		data, err := os.ReadFile(filepath.Join("testdata", n))
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, File{Path: "d/" + n, Data: data, Dir: "d"})
	}
	return files
}

// list wraps plugins in a list that is right but for them.
func wrap(plugins string) []File {
	return one("x.conflist", `{"cniVersion":"1.0.0","cniVersions":["1.1.0"],"name":"x","plugins":[`+plugins+`]}`)
}

const good = `{"type":"usernet","capabilities":{"aliases":true,"bandwidth":true,"dns":true,"ipRanges":true,"ips":true,"mac":true,"portMappings":true}}`

// with gives the sound entry further keys.
func with(keys string) string { return strings.Replace(good, `"type"`, keys+`,"type"`, 1) }

// facts of a machine that differs from plain.
func facts(change func(*Facts)) Facts {
	f := plain()
	change(&f)
	return f
}

// list of one name and subnet, with no fault.
func network(path, name, subnet string) File {
	return File{Path: path, Dir: "d", Data: []byte(`{"cniVersion":"1.0.0","cniVersions":["1.1.0"],"name":"` + name + `","plugins":[` +
		with(`"ipam":{"ranges":[[{"subnet":"`+subnet+`"}]]}`) + `]}`)}
}

func bridge(path, subnet string) File {
	return File{Path: path, Dir: "d", Data: []byte(`{"cniVersion":"1.0.0","name":"b","plugins":[{"type":"bridge","ipam":{"type":"host-local","subnet":"` + subnet + `"}}]}`)}
}

// hazard is a sample in which something is found, and the same mended as the
// finding says, in which nothing is.
type hazard struct {
	name   string
	bad    []File
	facts  Facts // of both, but for mended
	want   []string
	sound  []File
	mended *Facts // the machine when it was the machine that was mended
}

var (
	nothing    = plain()
	ownDropins = facts(func(f *Facts) {
		f.Binaries = map[string]Binary{"host-local": {Path: "/h"}, Type: {Path: "/u", Ours: true}, "sbr": {Path: "/s"}}
		for _, typ := range []string{"bridge", "portmap", "firewall", "tuning", "bandwidth", "loopback"} {
			f.Binaries[typ] = Binary{Path: "/d/" + typ, Ours: true}
		}
	})
	// Debian's release 1.1.1 of the reference plugins, beside the drop-in names.
	olderPlugins = facts(func(f *Facts) {
		f.Binaries = map[string]Binary{Type: {Path: "/u", Ours: true}, "bridge": {Path: "/d/bridge", Ours: true}}
		for _, typ := range []string{"host-local", "static", "sbr"} {
			f.Binaries[typ] = Binary{Path: "/usr/lib/cni/" + typ, Versions: []string{"0.1.0", "0.4.0", "1.0.0"}}
		}
	})
	noIPAMs = facts(func(f *Facts) {
		f.Binaries = map[string]Binary{Type: {Path: "/u", Ours: true}, "bridge": {Path: "/d/bridge", Ours: true}}
	})
	dead     = facts(func(f *Facts) { f.Sockets = map[string]Daemon{"": {Path: "/s"}} })
	leaves   = facts(func(f *Facts) { f.Podman = &Podman{File: "/etc/containers/containers.conf"} })
	reserves = facts(func(f *Facts) { f.Podman = &Podman{Reserves: true} })
)

// hazards are of lists that are alone, and of what they need of the machine.
var hazards = []hazard{
	{name: "bandwidth", bad: wrap(good + `,{"type":"bandwidth","capabilities":{"bandwidth":true}}`), facts: plain(),
		want: []string{"error chain-bandwidth plugins[1].type"}, sound: wrap(good)},
	{name: "bandwidth with limits of its own", bad: wrap(good + `,{"type":"bandwidth","ingressRate":1000,"ingressBurst":1000}`), facts: plain(),
		want: []string{"error chain-bandwidth plugins[1].type"}, sound: wrap(good)},
	{name: "portmap", bad: wrap(good + `,{"type":"portmap","capabilities":{"portMappings":true}}`), facts: plain(),
		want: []string{"error chain-portmap plugins[1].type"}, sound: wrap(good)},
	{name: "portmap that gets no ports", bad: wrap(good + `,{"type":"portmap"}`), facts: plain(),
		want: []string{"warning chain-portmap plugins[1].capabilities.portMappings"}, sound: wrap(good)},
	{name: "firewall that takes eth0 for a bridge", bad: wrap(good + `,{"type":"firewall","ingressPolicy":"same-bridge"}`), facts: plain(),
		want: []string{"error chain-firewall plugins[1].ingressPolicy"}, sound: wrap(good)},
	{name: "firewall", bad: wrap(good + `,{"type":"firewall","ingressPolicy":"open"}`), facts: plain(),
		want: []string{"warning chain-firewall plugins[1].type"}, sound: wrap(good)},
	{name: "dnsname", bad: wrap(good + `,{"type":"dnsname","domainName":"d","capabilities":{"aliases":true}}`), facts: plain(),
		want: []string{"error chain-dnsname plugins[1].type"}, sound: wrap(good)},
	{name: "tuning sets a MAC address", bad: wrap(good + `,{"type":"tuning","mac":"02:00:00:00:00:09"}`), facts: plain(),
		want: []string{"error chain-tuning plugins[1].mac"}, sound: wrap(with(`"device":"tap"`) + `,{"type":"tuning","mac":"02:00:00:00:00:09"}`)},
	{name: "tuning sets a MAC address from args", bad: wrap(good + `,{"type":"tuning","args":{"cni":{"mac":"02:00:00:00:00:09"}}}`), facts: plain(),
		want: []string{"error chain-tuning plugins[1].args.cni.mac"}, sound: wrap(good + `,{"type":"tuning","args":{"cni":{}}}`)},
	{name: "tuning with the capability mac", bad: wrap(good + `,{"type":"tuning","capabilities":{"mac":true}}`), facts: plain(),
		want: []string{"warning chain-tuning plugins[1].capabilities.mac"}, sound: wrap(good + `,{"type":"tuning"},{"type":"sbr"},{"type":"vrf"},{"type":"loopback"}`)},
	{name: "a chain of our own executables", bad: wrap(good + `,{"type":"portmap","capabilities":{"portMappings":true}}`), facts: facts(func(f *Facts) {
		f.Binaries = map[string]Binary{Type: {Ours: true}, "portmap": {Path: "/usr/lib/cni/portmap"}}
	}), want: []string{"error chain-portmap plugins[1].type"},
		sound: wrap(good + `,{"type":"portmap","capabilities":{"portMappings":true}},{"type":"bandwidth"},{"type":"firewall"}`), mended: &ownDropins},
	{name: "our portmap on another's bridge", bad: wrap(`{"type":"bridge"},{"type":"portmap","capabilities":{"portMappings":true}},{"type":"tuning"}`), facts: facts(func(f *Facts) {
		f.Binaries = map[string]Binary{"bridge": {Path: "/b"}, "portmap": {Path: "/d/portmap", Ours: true}, "tuning": {Path: "/d/tuning", Ours: true}}
	}), want: []string{"error chain plugins[1].type"}, sound: wrap(`{"type":"loopback"},{"type":"bridge"},{"type":"portmap","capabilities":{"portMappings":true}},{"type":"tuning"}`), mended: &ownDropins},
	{name: "value refused by our bridge", bad: wrap(`{"type":"bridge","mtu":40,"x":1}`), facts: ownDropins, want: []string{"error value plugins[0]"}, sound: wrap(`{"type":"bridge","x":1}`)},
	{name: "bridge before", bad: wrap(`{"type":"bridge"},` + good), facts: plain(), want: []string{"error chain plugins[0].type"}, sound: wrap(good)},
	{name: "bridge after", bad: wrap(good + `,{"type":"bridge"}`), facts: plain(), want: []string{"error chain plugins[1].type"}, sound: wrap(good)},
	{name: "portmap before", bad: wrap(`{"type":"portmap"},` + good), facts: plain(), want: []string{"error chain plugins[0].type"}, sound: wrap(`{"type":"tuning"},` + good)},
	{name: "usernet twice", bad: wrap(good + "," + good), facts: plain(), want: []string{"error chain plugins[1].type"}, sound: wrap(good)},

	{name: "unknown key", bad: wrap(with(`"mtuu":1400`)), facts: plain(), want: []string{"error unknown-key plugins[0].mtuu"}, sound: wrap(with(`"mtu":1400,"cni.dev/x":1`))},
	{name: "value refused", bad: wrap(with(`"mtu":40`)), facts: plain(), want: []string{"error value plugins[0]"}, sound: wrap(with(`"mtu":1400`))},
	{name: "socket too long", bad: wrap(with(`"socket":"/` + strings.Repeat("a", 107) + `"`)), facts: plain(),
		want: []string{"error socket plugins[0].socket"}, sound: wrap(with(`"socket":"/` + strings.Repeat("a", 106) + `"`))},
	{name: "key beside the plugins", bad: one("x.conflist", `{"cniVersion":"1.0.0","cniVersions":["1.1.0"],"name":"x","mtu":1400,"plugins":[`+good+`]}`), facts: plain(),
		want: []string{"warning misplaced-key mtu"}, sound: one("x.conflist", `{"cniVersion":"1.0.0","cniVersions":["1.1.0"],"name":"x","disableCheck":true,"nerdctlID":"1","plugins":[`+good+`]}`)},
	{name: "capability misspelt", bad: wrap(strings.Replace(good, "portMappings", "portmappings", 1)), facts: plain(),
		want: []string{"error capability plugins[0].capabilities.portmappings"}, sound: wrap(good)},
	{name: "capability missing", bad: wrap(strings.Replace(good, `"ips":true`, `"ips":false`, 1)), facts: plain(),
		want: []string{"warning capability plugins[0].capabilities"}, sound: wrap(good)},
	{name: "capability not honoured", bad: wrap(strings.Replace(good, `"ips":true`, `"ips":true,"infinibandGUID":true`, 1)), facts: plain(),
		want: []string{"warning capability plugins[0].capabilities.infinibandGUID"}, sound: wrap(good)},

	{name: "version too new", bad: one("x.conflist", `{"cniVersion":"2.0.0","name":"x","plugins":[`+good+`]}`), facts: plain(), want: []string{"error version cniVersion"}, sound: wrap(good)},
	{name: "version that podman 4 cannot load", bad: one("x.conflist", `{"cniVersion":"1.1.0","name":"x","plugins":[`+good+`]}`), facts: plain(), want: []string{"warning version cniVersion"}, sound: wrap(good)},
	{name: "version without STATUS and GC", bad: one("x.conflist", `{"cniVersion":"1.0.0","name":"x","plugins":[`+good+`]}`), facts: plain(), want: []string{"warning version cniVersions"}, sound: wrap(good)},
	{name: "no version", bad: one("x.conflist", `{"name":"x","plugins":[`+good+`]}`), facts: plain(), want: []string{"warning version cniVersion"}, sound: wrap(good)},

	{name: "truncated", bad: one("x.conflist", `{"name":"x",`), facts: plain(), want: []string{"error form"}, sound: wrap(good)},
	{name: "null", bad: one("x.conflist", `null`), facts: plain(), want: []string{"error form"}, sound: wrap(good)},
	{name: "no plugins", bad: one("x.conflist", `{"name":"x"}`), facts: plain(), want: []string{"error form plugins"}, sound: wrap(good)},
	{name: "no type", bad: wrap(`{}`), facts: plain(), want: []string{"error form plugins[0].type"}, sound: wrap(good)},
	{name: "type is a path", bad: wrap(`{"type":"/opt/cni/bin/usernet"}`), facts: plain(), want: []string{"error form plugins[0].type"}, sound: wrap(good)},
	{name: "capabilities of the wrong form", bad: wrap(strings.Replace(good, `"ips":true`, `"ips":1`, 1)), facts: plain(),
		want: []string{"error form plugins[0].capabilities", "warning capability plugins[0].capabilities"}, sound: wrap(good)},
	{name: "one plugin as a list", bad: one("x.conflist", `{"name":"x","type":"sbr"}`), facts: plain(), want: []string{"error form plugins"}, sound: one("x.conf", `{"name":"x","type":"sbr"}`)},
	{name: "a list as one plugin", bad: one("x.conf", `{"name":"x","plugins":[{"type":"sbr"}]}`), facts: plain(), want: []string{"error form plugins"}, sound: one("x.conflist", `{"name":"x","plugins":[{"type":"sbr"}]}`)},

	{name: "no executables", bad: wrap(good + `,{"type":"sbr"}`), facts: facts(func(f *Facts) { f.Binaries = map[string]Binary{} }),
		want: []string{"error binary plugins[0].type", "error binary plugins[1].type"}, sound: wrap(good + `,{"type":"sbr"}`), mended: &ownDropins},
	{name: "no IPAM executable", bad: wrap(with(`"ipam":{"type":"static"}`)), facts: ownDropins, want: []string{"error binary plugins[0].ipam.type"}, sound: wrap(with(`"ipam":{"type":"host-local"}`))},
	{name: "our bridge has the daemon lease", bad: wrap(`{"type":"bridge","ipam":{"type":"static"}}`), facts: noIPAMs, want: []string{"error binary plugins[0].ipam.type"}, sound: wrap(`{"type":"bridge","ipam":{"type":"host-local"}}`)},
	{name: "IPAM executable of an older version", bad: wrap(with(`"ipam":{"type":"host-local"}`)), facts: olderPlugins, want: []string{"error plugin-version plugins[0].ipam.type"}, sound: wrap(with(`"ipam":{"type":"usernet"}`))},
	{name: "IPAM executable of an older version, of our bridge", bad: wrap(`{"type":"bridge","ipam":{"type":"static"}}`), facts: olderPlugins, want: []string{"error plugin-version plugins[0].ipam.type"}, sound: one("x.conflist", `{"cniVersion":"1.0.0","name":"x","plugins":[{"type":"bridge","ipam":{"type":"static"}}]}`)},
	{name: "chained executable of an older version", bad: wrap(good + `,{"type":"sbr"}`), facts: olderPlugins, want: []string{"error plugin-version plugins[1].type"}, sound: wrap(good + `,{"type":"sbr"}`), mended: &ownDropins},
	{name: "not executable", bad: wrap(good), facts: facts(func(f *Facts) { f.Binaries = map[string]Binary{Type: {Path: "/u", NotExecutable: true}} }),
		want: []string{"error binary plugins[0].type"}, sound: wrap(good), mended: &ownDropins},
	{name: "another's executable", bad: wrap(good), facts: facts(func(f *Facts) { f.Binaries = map[string]Binary{Type: {Path: "/u"}} }),
		want: []string{"error binary plugins[0].type"}, sound: wrap(good), mended: &ownDropins},
	{name: "daemon dead and not to be started", bad: wrap(with(`"autostart":false`)), facts: dead, want: []string{"error daemon plugins[0].autostart"}, sound: wrap(good)},
	{name: "daemon dead and nothing to start", bad: wrap(good), facts: facts(func(f *Facts) { f.Sockets = dead.Sockets; f.NoProgram = true }),
		want: []string{"warning daemon plugins[0].socket"}, sound: wrap(good), mended: &dead},
	{name: "foreign daemon", bad: wrap(good), facts: facts(func(f *Facts) { f.Sockets = map[string]Daemon{"": {Path: "/s", Problem: "foreign"}} }),
		want: []string{"error daemon plugins[0].socket"}, sound: wrap(good), mended: &dead},
	{name: "daemon of our bridge dead and not to be started", bad: wrap(`{"type":"bridge","autostart":false}`), facts: facts(func(f *Facts) { f.Binaries, f.Sockets = ownDropins.Binaries, dead.Sockets }),
		want: []string{"error daemon plugins[0].autostart"}, sound: wrap(`{"type":"bridge"}`)},
	{name: "no DHCP daemon", bad: wrap(with(`"device":"tap","ipam":{"type":"dhcp"}`)), facts: facts(func(f *Facts) { f.DHCP = map[string]bool{"/run/cni/dhcp.sock": false, "/s": true} }),
		want: []string{"error dhcp plugins[0].ipam"}, sound: wrap(with(`"device":"tap","ipam":{"type":"dhcp","daemonSocketPath":"/s"}`))},
	{name: "device for root", bad: wrap(good), facts: facts(func(f *Facts) { f.TUN = &Device{Mode: "0600"} }),
		want: []string{"warning device /dev/net/tun"}, sound: one("x.conflist", `{"name":"b","plugins":[{"type":"bridge"}]}`)},
	{name: "no device", bad: wrap(good), facts: facts(func(f *Facts) { f.TUN = &Device{Missing: true} }),
		want: []string{"error device /dev/net/tun"}, sound: wrap(good), mended: &nothing},
	{name: "podman reserves", bad: wrap(good), facts: reserves, want: []string{"warning podman-ports plugins[0]"}, sound: wrap(with(`"publish":{"mode":"redirect"}`))},
	{name: "podman reserves, on our portmap", bad: wrap(`{"type":"bridge"},{"type":"portmap","capabilities":{"portMappings":true}}`), facts: facts(func(f *Facts) { f.Binaries, f.Podman = ownDropins.Binaries, reserves.Podman }),
		want: []string{"warning podman-ports plugins[1]"}, sound: wrap(`{"type":"bridge"}`)},
	{name: "podman reserves, mended there", bad: wrap(good), facts: reserves, want: []string{"warning podman-ports plugins[0]"}, sound: wrap(good), mended: &leaves},
}

func TestLint(t *testing.T) {
	for _, h := range hazards {
		t.Run(h.name, func(t *testing.T) {
			check(t, Parse(h.bad).Lint(h.facts), h.want)
			if h.mended == nil {
				h.mended = &h.facts
			}
			check(t, Parse(h.sound).Lint(*h.mended), nil)
		})
	}
}

// check holds what was found against severities, rules and places.
func check(t *testing.T, got []Finding, want []string) {
	t.Helper()
	if b := brief(got); !slices.Equal(b, want) {
		t.Errorf("found %q\nwant  %q", b, want)
	}
	for _, f := range got {
		if f.What == "" || (f.Fix == "") != (f.Severity == OK) {
			t.Errorf("%+v: every finding says what happens, and all but OK the remedy", f)
		}
	}
}

func TestLintOfSeveralFiles(t *testing.T) {
	conflict := network("d/2", "two", "10.1.2.0/24")
	tests := []struct {
		name  string
		files []File
		want  []string
	}{
		{"apart", []File{network("d/1.conflist", "one", "10.1.0.0/24"), network("d/2.conflist", "two", "10.1.1.0/24")}, nil},
		{"one daemon, overlapping", []File{network("d/1.conflist", "one", "10.1.0.0/16"), network("d/2.conflist", "two", "10.1.2.0/24")}, []string{"error overlap plugins[0].ipam"}},
		{"IPv6 overlapping", []File{network("d/1.conflist", "one", "fd00::/48"), network("d/2.conflist", "two", "fd00:0:0:7::/64")}, []string{"error overlap plugins[0].ipam"}},
		{"overlapping a bridge", []File{network("d/1.conflist", "one", "10.1.0.0/16"), bridge("d/2.conflist", "10.1.2.0/24")}, []string{"warning overlap plugins[0].ipam"}},
		{"beside a bridge", []File{network("d/1.conflist", "one", "10.1.0.0/16"), bridge("d/2.conflist", "10.2.2.0/24")}, nil},
		{"two bridges are not our affair", []File{network("d/1.conflist", "one", "10.3.0.0/16"), bridge("d/2.conflist", "10.2.2.0/24"), bridge("d/3.conflist", "10.2.2.0/24")}, nil},
		{"one name twice", []File{network("d/1.conflist", "one", "10.1.0.0/24"), network("d/2.conflist", "one", "10.1.0.0/24")}, []string{"warning name name"}},
		{"a bridge first", []File{bridge("d/1.conflist", "10.2.2.0/24"), network("d/2.conflist", "two", "10.1.1.0/24")}, []string{"warning order"}},
		{"a bridge alone", []File{bridge("d/1.conflist", "10.2.2.0/24")}, []string{"warning order"}},
		{"a directory was not given", []File{{Path: "1.conflist", Data: bridge("", "10.2.2.0/24").Data}, {Path: "2.conflist", Data: conflict.Data}}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { check(t, Parse(tt.files).Lint(plain()), tt.want) })
	}
}

// What others ship is judged as it is.
func TestLintOfSamples(t *testing.T) {
	tests := []struct {
		name  string
		facts Facts
		want  []string
	}{
		{"ours", plain(), nil},
		{"podman", plain(), []string{"warning order"}},
		{"podman", ownDropins, nil},
		{"containerd", plain(), []string{"warning order"}},
		{"chained", plain(), []string{
			"warning version cniVersion",
			"error unknown-key plugins[0].mtuu",
			"warning capability plugins[0].capabilities.infinibandGUID",
			"error capability plugins[0].capabilities.portmappings",
			"warning capability plugins[0].capabilities",
			"error chain-bandwidth plugins[1].type", "error chain-portmap plugins[2].type",
			"error chain-firewall plugins[3].ingressPolicy", "error chain-dnsname plugins[4].type",
			"error chain-tuning plugins[5].mac",
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			check(t, Parse(read(t, tt.name+".conflist")).Lint(tt.facts), tt.want)
		})
	}
}

// FuzzLint: any text is judged without a panic, the same each time, and what is
// no error-free list has a finding.
func FuzzLint(f *testing.F) {
	for _, n := range []string{"podman", "containerd", "ours", "chained"} {
		data, err := os.ReadFile(filepath.Join("testdata", n+".conflist"))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data, data)
	}
	f.Fuzz(func(t *testing.T, a, b []byte) {
		files := []File{{Path: "d/a.conflist", Data: a, Dir: "d"}, {Path: "d/b.conf", Data: b, Dir: "d"}}
		first, second := Parse(files).Lint(plain()), Parse(files).Lint(plain())
		if len(first) == 0 || !slices.Equal(brief(first), brief(second)) {
			t.Errorf("%q, then %q", brief(first), brief(second))
		}
	})
}
