//go:build runtimes

package test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// leasing is one request to both host-local and usernet: "add ID" or "del ID",
// with what the runtime asks for.
type leasing struct {
	do      string
	args    string // CNI_ARGS
	runtime keys   // runtimeConfig
	cni     keys   // args.cni
}

// hostLocalTypes are what is compared with host-local: the type of "ipam" that is
// served natively, and the executable of host-local's name.
var hostLocalTypes = []struct{ ipamType, path string }{
	{"usernet", "cni/usernet"},
	{"host-local", "ipam/host-local"},
}

// hostLocalCases are configurations of "ipam" and what is asked of them. The
// leases of one case must not depend on how long an address rests: usernet
// prefers those that do not.
var hostLocalCases = []struct {
	name  string
	ipam  keys
	steps []leasing
}{
	{"round robin", keys{"ranges": [][]keys{{{"subnet": "10.60.0.0/24"}}, {{"subnet": "fd60::/64"}}}}, []leasing{
		{do: "add a"}, {do: "add b"}, {do: "del a"}, {do: "add a"}, {do: "add a"}, {do: "del b"}, {do: "add c"}, {do: "del nobody"}}},
	{"gateway", keys{"ranges": [][]keys{{{"subnet": "10.60.0.0/24", "gateway": "10.60.0.2"}}, {{"subnet": "fd60::/64", "gateway": "fd60::2"}}}}, []leasing{
		{do: "add a"}, {do: "add b"},
		{do: "add c", args: "IP=10.60.0.2"}, {do: "add c", runtime: keys{"ips": []string{"fd60::2"}}}}},
	{"exhaustion", keys{"subnet": "10.60.0.0/24", "rangeStart": "10.60.0.10", "rangeEnd": "10.60.0.12"}, []leasing{
		{do: "add a"}, {do: "add b"}, {do: "add c"}, {do: "add d"}, {do: "del b"}, {do: "add d"}, {do: "add e"}}},
	{"requests", keys{"ranges": [][]keys{{{"subnet": "10.60.0.0/24", "rangeEnd": "10.60.0.200"}}, {{"subnet": "fd60::/64"}}}}, []leasing{
		{do: "add a", args: "IP=10.60.0.100"}, {do: "add b", args: "IP=10.60.0.100"}, {do: "add b"},
		{do: "add c", runtime: keys{"ips": []string{"10.60.0.50/24", "fd60::50"}}},
		{do: "add d", cni: keys{"ips": []string{"fd60::60"}}},
		{do: "add e", args: "IP=10.60.0.201"}, {do: "add e", args: "IP=10.60.0.1"}, {do: "add e", args: "IP=10.60.0.0"},
		{do: "add e", args: "IP=10.60.0.255"}, {do: "add e", args: "IP=10.61.0.5"}, {do: "add e", args: "IP=nonsense"},
		{do: "add e", runtime: keys{"ips": []string{"10.60.0.70", "10.60.0.71"}}},
		// A refused request moves host-local's cursor in the other sets, so that the
		// last one names both addresses.
		{do: "del a"}, {do: "add f", runtime: keys{"ips": []string{"10.60.0.100", "fd60::99"}}}}},
	{"/30 and /126", keys{"ranges": [][]keys{{{"subnet": "10.60.0.0/30"}}, {{"subnet": "fd60::/126"}}}}, []leasing{{do: "add a"}, {do: "add b"}}},
	{"/31", keys{"subnet": "10.60.0.0/31"}, []leasing{{do: "add a"}}},
	{"/32", keys{"subnet": "10.60.0.0/32"}, []leasing{{do: "add a"}}},
	{"/127", keys{"subnet": "fd60::/127"}, []leasing{{do: "add a"}}},
	{"/128", keys{"subnet": "fd60::/128"}, []leasing{{do: "add a"}}},
	{"host bits", keys{"subnet": "10.60.0.1/24"}, []leasing{{do: "add a"}}},
	{"end before start", keys{"subnet": "10.60.0.0/24", "rangeStart": "10.60.0.9", "rangeEnd": "10.60.0.8"}, []leasing{{do: "add a"}}},
	{"start outside", keys{"subnet": "10.60.0.0/24", "rangeStart": "10.61.0.9"}, []leasing{{do: "add a"}}},
	{"no range", keys{"ranges": [][]keys{{}}}, []leasing{{do: "add a"}}},
	{"families in one set", keys{"ranges": [][]keys{{{"subnet": "10.60.0.0/24"}, {"subnet": "fd60::/64"}}}}, []leasing{{do: "add a"}}},
	{"overlap in a set", keys{"ranges": [][]keys{{{"subnet": "10.60.0.0/24"}, {"subnet": "10.60.0.0/24", "rangeStart": "10.60.0.9"}}}}, []leasing{{do: "add a"}}},
	{"overlap of sets", keys{"ranges": [][]keys{{{"subnet": "10.60.0.0/24"}}, {{"subnet": "10.60.0.0/16"}}}}, []leasing{{do: "add a"}}},
	{"two ranges of one subnet", keys{"ranges": [][]keys{{
		{"subnet": "10.60.0.0/24", "rangeStart": "10.60.0.20", "rangeEnd": "10.60.0.21"},
		{"subnet": "10.60.0.0/24", "rangeStart": "10.60.0.10", "rangeEnd": "10.60.0.11"}}}}, []leasing{
		{do: "add a"}, {do: "add b"}, {do: "add c"}, {do: "add d"}, {do: "add e"}}},
	{"two sets of one family", keys{"ranges": [][]keys{
		{{"subnet": "10.60.0.0/24", "rangeEnd": "10.60.0.99"}}, {{"subnet": "10.60.0.0/24", "rangeStart": "10.60.0.100"}}}}, []leasing{
		{do: "add a"}, {do: "add b", args: "IP=10.60.0.120"}}},
	{"two subnets in a set", keys{"ranges": [][]keys{{
		{"subnet": "10.60.0.0/24", "rangeStart": "10.60.0.20", "rangeEnd": "10.60.0.20", "gateway": "10.60.0.254"}, {"subnet": "10.61.0.0/24"}}}}, []leasing{
		{do: "add a"}, {do: "add b"}, {do: "add c", args: "IP=10.61.0.77"}, {do: "add d", args: "IP=10.61.0.1"}, {do: "add d"}}},
	{"two subnets in two sets", keys{"ranges": [][]keys{{{"subnet": "10.60.0.0/24"}}, {{"subnet": "10.61.0.0/24"}}, {{"subnet": "fd60::/64"}}, {{"subnet": "fd61::/64"}}}}, []leasing{
		{do: "add a"}, {do: "add b"}}},
	{"older form and ranges", keys{"subnet": "10.60.0.0/24", "ranges": [][]keys{{{"subnet": "fd60::/64"}}}}, []leasing{{do: "add a"}}},
	{"ipRanges first", keys{"ranges": [][]keys{{{"subnet": "fd60::/64"}}}}, []leasing{
		{do: "add a", runtime: keys{"ipRanges": [][]keys{{{"subnet": "10.60.0.0/24", "rangeStart": "10.60.0.40"}}}}},
		{do: "add b", runtime: keys{"ipRanges": [][]keys{{{"subnet": "10.60.0.0/24", "rangeStart": "10.60.0.40"}}}}}}},
	{"routes and dns", keys{"subnet": "10.60.0.0/24", "routes": []keys{{"dst": "0.0.0.0/0"}, {"dst": "192.0.2.0/24", "gw": "10.60.0.9"}}, "resolvConf": "FILE"},
		[]leasing{{do: "add a"}}},
	{"resolvConf that is not there", keys{"subnet": "10.60.0.0/24", "resolvConf": "/nowhere/resolv.conf"}, []leasing{{do: "add a"}}},
}

// leased is what both are compared by.
type leased struct {
	OK     bool
	IPs    []string // with gateways
	Routes []string
	DNS    []string
}

// TestCNIHostLocal runs Debian's host-local and usernet's side by side: what the
// one gives or refuses, so does the other.
func TestCNIHostLocal(t *testing.T) {
	oracle := refPlugins + "/host-local"
	if _, err := os.Stat(oracle); err != nil {
		t.Fatalf("%v; install containernetworking-plugins", err)
	}
	b := newBed(t)
	b.startDaemon()
	resolv := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(resolv, []byte("nameserver 192.0.2.53\nsearch example.org\noptions ndots:2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, kind := range hostLocalTypes {
		for _, tt := range hostLocalCases {
			t.Run(kind.path+"/"+tt.name, func(t *testing.T) {
				native := kind.ipamType == "usernet"
				if tt.ipam["resolvConf"] == "FILE" {
					tt.ipam["resolvConf"] = resolv
				}
				tt.ipam["dataDir"] = t.TempDir()
				ours := map[string]bool{}
				boxes := map[string]container{}
				for n, step := range tt.steps {
					verb, id, _ := strings.Cut(step.do, " ")
					if _, ok := boxes[id]; !ok {
						boxes[id] = b.container()
					}
					ours[id] = true
					want := b.lease(t, oracle, "host-local", tt.ipam, step, boxes[id].path)
					got := b.lease(t, program(kind.path), kind.ipamType, tt.ipam, step, boxes[id].path)
					// Without routes or resolvConf a network of usernet says what it offers.
					if native && tt.ipam["routes"] == nil {
						got.Routes = nil
					}
					if native && tt.ipam["resolvConf"] == nil {
						got.DNS = nil
					}
					if d := cmp.Diff(want, got); d != "" {
						t.Errorf("step %d, %s %+v (-host-local +usernet):\n%s", n, verb, step, d)
					}
				}
				for id := range ours {
					b.lease(t, program(kind.path), kind.ipamType, tt.ipam, leasing{do: "del " + id}, boxes[id].path)
				}
				_ = b.client.RemoveNetwork(t.Context(), "leases") // a case that was refused has made none
				if left, err := b.client.Leases(t.Context(), ""); err != nil || len(left) > 0 {
					t.Errorf("left: %+v, %v", left, err)
				}
			})
		}
	}
}

// lease runs one step by one plugin.
func (b *bed) lease(t *testing.T, path, ipamType string, ipam keys, step leasing, netns string) leased {
	t.Helper()
	verb, id, _ := strings.Cut(step.do, " ")
	config := keys{"cniVersion": "1.0.0", "name": "leases", "type": "usernet", "socket": b.socket, "autostart": false}
	if step.runtime != nil {
		config["runtimeConfig"] = step.runtime
	}
	if step.cni != nil {
		config["args"] = keys{"cni": step.cni}
	}
	typed := keys{"type": ipamType}
	for k, v := range ipam {
		typed[k] = v
	}
	config["ipam"] = typed
	text, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path)
	cmd.Env = append(os.Environ(), "CNI_COMMAND="+strings.ToUpper(verb), "CNI_PATH="+refPlugins, "CNI_CONTAINERID="+id,
		"CNI_IFNAME=eth0", "CNI_NETNS="+netns, "CNI_ARGS="+step.args)
	cmd.Stdin = strings.NewReader(string(text))
	var out strings.Builder
	cmd.Stdout = &out
	if err := b.host.Do(cmd.Start); err != nil {
		t.Fatal(err)
	}
	err = cmd.Wait()
	if err != nil {
		t.Logf("%s: %s: %s", ipamType, step.do, out.String())
		return leased{}
	}
	l := leased{OK: true}
	if verb == "del" {
		return l
	}
	r := b.parse(out.String())
	for _, ip := range r.IPs {
		l.IPs = append(l.IPs, ip.Address+" via "+ip.Gateway)
	}
	for _, route := range r.Routes {
		gw := route.GW
		if gw == "" && len(r.IPs) > 0 {
			gw = r.IPs[0].Gateway // host-local leaves that to its caller
		}
		l.Routes = append(l.Routes, route.Dst+" via "+gw)
	}
	l.DNS = append(append(append(l.DNS, r.DNS.Nameservers...), r.DNS.Search...), r.DNS.Options...)
	return l
}
