package plugin

import (
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/usernet/usernet/internal/nstest"
)

// ipamName is the name under which the test binary is an IPAM plugin.
const ipamName = "testipam"

func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == ipamName {
		os.Exit(ipamMain())
	}
	nstest.Main(m)
}

// ipamConf is the configuration of the test's IPAM plugin.
type ipamConf struct {
	Type      string         `json:"type"`
	Dir       string         `json:"dir"`       // of leases and the log
	Addresses []string       `json:"addresses"` // "address/len gateway"
	Routes    []*types.Route `json:"routes,omitempty"`
	DNS       types.DNS      `json:"dns"`
	Fail      string         `json:"fail,omitempty"` // verb that fails, after it has done its work
}

// ipamMain is a real IPAM plugin in a process of its own: it keeps leases as
// files and a log of how it was called.
func ipamMain() int {
	stdin, err := io.ReadAll(os.Stdin)
	if err != nil {
		return 2
	}
	var conf struct {
		CNIVersion string   `json:"cniVersion"`
		Name       string   `json:"name"`
		IPAM       ipamConf `json:"ipam"`
	}
	if err := json.Unmarshal(stdin, &conf); err != nil {
		return 2
	}
	verb := os.Getenv("CNI_COMMAND")
	line := fmt.Sprintf("%s %s %s %s %s\n", verb, conf.Name, os.Getenv("CNI_CONTAINERID"), os.Getenv("CNI_IFNAME"), os.Getenv("CNI_ARGS"))
	log, err := os.OpenFile(filepath.Join(conf.IPAM.Dir, "log"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return 2
	}
	if _, err := log.WriteString(line); err != nil {
		return 2
	}
	log.Close()
	fmt.Fprintf(os.Stderr, "testipam says %s\n", verb)
	lease := filepath.Join(conf.IPAM.Dir, "lease-"+os.Getenv("CNI_CONTAINERID")+"-"+os.Getenv("CNI_IFNAME"))
	var result types.Result
	switch verb {
	case cmdAdd:
		if err := os.WriteFile(lease, stdin, 0o600); err != nil {
			return 2
		}
		r := &types100.Result{CNIVersion: types100.ImplementedSpecVersion, Routes: conf.IPAM.Routes, DNS: conf.IPAM.DNS}
		for _, a := range conf.IPAM.Addresses {
			addr, gw, _ := strings.Cut(a, " ")
			ip := &types100.IPConfig{Address: ipNet(netip.MustParsePrefix(addr))}
			if gw != "" {
				ip.Gateway = netip.MustParseAddr(gw).AsSlice()
			}
			r.IPs = append(r.IPs, ip)
		}
		if result, err = r.GetAsVersion(conf.CNIVersion); err != nil {
			return 2
		}
	case cmdDel:
		if err := os.Remove(lease); err != nil && !os.IsNotExist(err) {
			return 2
		}
	}
	if conf.IPAM.Fail == verb {
		if types.NewError(142, "testipam was told to fail", "").Print() != nil {
			return 2
		}
		return 1
	}
	if result != nil && result.Print() != nil {
		return 2
	}
	return 0
}

// installIPAM makes the test binary an IPAM plugin in a directory for CNI_PATH,
// and returns that and an empty directory for its leases.
func installIPAM(t *testing.T) (path, dir string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	path, dir = t.TempDir(), t.TempDir()
	if err := os.Symlink(self, filepath.Join(path, ipamName)); err != nil {
		t.Fatal(err)
	}
	return path, dir
}

// ipamLog returns how the IPAM plugin was called.
func ipamLog(t *testing.T, dir string) []string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "log"))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
}

// TestIPAMIsForwarded: DEL, GC and STATUS reach the IPAM plugin whether there
// is a daemon or not, with the whole configuration, and its errors keep their
// code.
func TestIPAMIsForwarded(t *testing.T) {
	path, dir := installIPAM(t)
	socket := t.TempDir() + "/usernet.sock"
	config := func(fail string) io.Reader {
		b, err := json.Marshal(map[string]any{
			"cniVersion": "1.1.0", "name": "n", "socket": socket, "autostart": false,
			"ipam": ipamConf{Type: ipamName, Dir: dir, Fail: fail},
		})
		if err != nil {
			t.Fatal(err)
		}
		return strings.NewReader(string(b))
	}
	env := []string{"CNI_CONTAINERID=c1", "CNI_IFNAME=eth0", "CNI_PATH=/none:" + path, "CNI_ARGS=A=b"}
	status, stdout, stderr := runWith(config(""), append(env, "CNI_COMMAND=DEL")...)
	if status != 0 || stdout != "" || stderr != "testipam says DEL\n" {
		t.Errorf("DEL: status %d, %s, %s", status, stdout, stderr)
	}
	status, stdout, _ = runWith(config("DEL"), append(env, "CNI_COMMAND=DEL")...)
	if status == 0 || !strings.Contains(stdout, "142") || !strings.Contains(stdout, "told to fail") || !strings.Contains(stdout, path) {
		t.Errorf("failing DEL: status %d, %s", status, stdout)
	}
	// Without a daemon GC fails, and yet collects what it can.
	status, stdout, _ = runWith(config(""), append(env, "CNI_COMMAND=GC")...)
	if status == 0 || !strings.Contains(stdout, `"code": 11`) || !strings.Contains(stdout, socket) {
		t.Errorf("GC: status %d, %s", status, stdout)
	}
	want := []string{"DEL n c1 eth0 A=b", "DEL n c1 eth0 A=b", "GC n c1 eth0 A=b"}
	if got := ipamLog(t, dir); strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("the IPAM plugin was called with\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
