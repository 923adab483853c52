package daemon

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.etcd.io/bbolt"

	"github.com/usernet/usernet/internal/control"
	"github.com/usernet/usernet/internal/nstest"
)

func TestNetworksComeAndGo(t *testing.T) {
	checkLeaks(t)
	r := start(t, testConfig(t))
	ctx := t.Context()
	web, err := r.CreateNetwork(ctx, control.CreateNetworkRequest{Name: "web", Subnets: []netip.Prefix{
		netip.MustParsePrefix("10.1.0.0/24"), netip.MustParsePrefix("fd01::/64"),
	}})
	if err != nil {
		t.Fatal(err)
	}
	if got := web.Gateways; len(got) != 2 || got[0].String() != "10.1.0.1/24" || got[1].String() != "fd01::1/64" {
		t.Errorf("gateways %v, want the first address of each subnet", got)
	}
	if web.Pool.Free < 1<<62 || web.Pool.Leased != 0 || web.Pool.Exhausted {
		t.Errorf("usage %+v of an empty network", web.Pool)
	}
	if web.MTU != 65520 || web.Source != control.SourceAPI {
		t.Errorf("MTU %d source %s, want 65520 api", web.MTU, web.Source)
	}
	chosen, err := r.CreateNetwork(ctx, control.CreateNetworkRequest{Name: "chosen"})
	if err != nil {
		t.Fatal(err)
	}
	if len(chosen.Gateways) != 2 || !choicePool.Contains(chosen.Gateways[0].Addr()) || !chosen.Gateways[1].Addr().IsPrivate() {
		t.Errorf("the daemon chose %v", chosen.Gateways)
	}
	list, err := r.Networks(ctx)
	if err != nil || len(list) != 2 || list[0].Name != "chosen" || list[1].Name != "web" {
		t.Errorf("list %v, %v", list, err)
	}
	if err := r.RemoveNetwork(ctx, "web"); err != nil {
		t.Error(err)
	}
	if _, err := r.Network(ctx, "web"); err == nil {
		t.Error("a removed network is still there")
	} else {
		wantCode(t, err, control.CodeNotFound)
	}
	wantCode(t, r.RemoveNetwork(ctx, "web"), control.CodeNotFound)
}

func TestBadNetworksAreRefused(t *testing.T) {
	r := start(t, testConfig(t))
	p := netip.MustParsePrefix
	mustCreate := func(name string, subnets ...netip.Prefix) {
		if _, err := r.CreateNetwork(t.Context(), control.CreateNetworkRequest{Name: name, Subnets: subnets}); err != nil {
			t.Fatal(err)
		}
	}
	mustCreate("a", p("10.1.0.0/24"))
	tests := []struct {
		name string
		req  control.CreateNetworkRequest
		code control.Code
		says []string
	}{
		{"same name", control.CreateNetworkRequest{Name: "a", Subnets: []netip.Prefix{p("10.7.0.0/24")}}, control.CodeNetworkExists, []string{"network a exists"}},
		{"overlap names both", control.CreateNetworkRequest{Name: "b", Subnets: []netip.Prefix{p("10.1.0.128/25")}}, control.CodeNetworkExists, []string{"network b", "10.1.0.128/25", "10.1.0.0/24", "network a"}},
		{"overlap by one that holds it", control.CreateNetworkRequest{Name: "b", Subnets: []netip.Prefix{p("10.0.0.0/8")}}, control.CodeNetworkExists, []string{"network a"}},
		{"two gateways of a subnet", control.CreateNetworkRequest{Name: "b", Sets: [][]control.Range{
			{{Subnet: p("10.2.0.0/24"), RangeEnd: netip.MustParseAddr("10.2.0.9")}},
			{{Subnet: p("10.2.0.0/24"), RangeStart: netip.MustParseAddr("10.2.0.10"), Gateway: netip.MustParseAddr("10.2.0.2")}},
		}}, control.CodeInvalid, []string{"10.2.0.1/24", "10.2.0.2/24", "same gateway"}},
		{"too small", control.CreateNetworkRequest{Name: "b", Subnets: []netip.Prefix{p("10.2.0.0/31")}}, control.CodeInvalid, []string{"10.2.0.0/31"}},
		{"host bits", control.CreateNetworkRequest{Name: "b", Subnets: []netip.Prefix{p("10.2.0.5/24")}}, control.CodeInvalid, []string{"10.2.0.5/24"}},
		{"bad name", control.CreateNetworkRequest{Name: "../b"}, control.CodeInvalid, []string{`"../b"`}},
		{"MTU", control.CreateNetworkRequest{Name: "b", MTU: 100}, control.CodeInvalid, []string{"mtu 100"}},
		{"sets and subnets", control.CreateNetworkRequest{Name: "b", Sets: sets("10.2.0.0/24"), Subnets: []netip.Prefix{p("10.2.0.0/24")}}, control.CodeInvalid, []string{"exclude"}},
		{"host service on the resolver's port", control.CreateNetworkRequest{Name: "b", HostServices: []control.HostService{{Name: "x", Target: netip.MustParseAddrPort("127.0.0.1:53")}}}, control.CodeInvalid, []string{"53"}},
	}
	before := r.world(t)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := r.CreateNetwork(t.Context(), tt.req)
			wantCode(t, err, tt.code)
			for _, s := range tt.says {
				if err == nil || !strings.Contains(err.Error(), s) {
					t.Errorf("error %q does not say %q", err, s)
				}
			}
		})
	}
	if d := cmp.Diff(before, r.world(t)); d != "" {
		t.Errorf("refused requests changed the world:\n%s", d)
	}
}

func TestRestartKeepsNetworks(t *testing.T) {
	cfg := testConfig(t)
	r := start(t, cfg)
	if _, err := r.CreateNetwork(t.Context(), control.CreateNetworkRequest{
		Name: "keep", Subnets: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24")}, Internal: true, MTU: 9000,
		HostServices: []control.HostService{{Name: "db", Target: netip.MustParseAddrPort("127.0.0.1:5432")}},
		Allow:        []netip.Prefix{netip.MustParsePrefix("169.254.169.254/32")},
	}); err != nil {
		t.Fatal(err)
	}
	want, err := r.Network(t.Context(), "keep")
	if err != nil {
		t.Fatal(err)
	}
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Version(t.Context()); !errors.Is(err, control.ErrNotRunning) {
		t.Errorf("after the end: %v, want %v", err, control.ErrNotRunning)
	}
	r = start(t, cfg)
	got, err := r.Network(t.Context(), "keep")
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }), cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); d != "" {
		t.Errorf("the network changed over a restart:\n%s", d)
	}
}

func TestOneDaemonPerStateDirAndSocket(t *testing.T) {
	cfg := testConfig(t)
	start(t, cfg)
	second, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	err = second.Run(t.Context())
	if !errors.Is(err, ErrStateInUse) || !strings.Contains(err.Error(), "pid "+strconv.Itoa(os.Getpid())) {
		t.Errorf("second daemon on the state directory: %v, want %v and the pid", err, ErrStateInUse)
	}
	other := cfg
	other.StateDir = t.TempDir()
	if second, err = New(other); err != nil {
		t.Fatal(err)
	}
	if err := second.Run(t.Context()); !errors.Is(err, control.ErrSocketInUse) {
		t.Errorf("second daemon on the socket: %v, want %v", err, control.ErrSocketInUse)
	}
}

func TestStateOfAnotherKindIsRefused(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "state.db")
	if err := os.WriteFile(path, []byte("not a database at all"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := openStore(path); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("garbage was opened: %v", err)
	}
	os.Remove(path)
	s, err := openStore(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.db.Update(func(tx *bbolt.Tx) error { return tx.Bucket(bucketMeta).Put(keyVersion, []byte("99")) }); err != nil {
		t.Fatal(err)
	}
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
	if _, err := openStore(path); err == nil || !strings.Contains(err.Error(), `"99"`) {
		t.Errorf("a later layout was opened: %v", err)
	}
	// A creation that was cut short leaves only the file under its temporary
	// name, whatever is in it.
	other := filepath.Join(dir, "other.db")
	if err := os.WriteFile(other+".new", []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if s, err = openStore(other); err != nil {
		t.Fatalf("after a creation that was cut short: %v", err)
	}
	s.close()
}

func TestDamagedRecordsAreNamed(t *testing.T) {
	cfg := testConfig(t)
	r := start(t, cfg)
	if _, err := r.CreateNetwork(t.Context(), control.CreateNetworkRequest{Name: "x"}); err != nil {
		t.Fatal(err)
	}
	if err := r.d.store.db.Update(func(tx *bbolt.Tx) error {
		return tx.Bucket(bucketNetworks).Put([]byte("y"), tx.Bucket(bucketNetworks).Get([]byte("x")))
	}); err != nil {
		t.Fatal(err)
	}
	_, err := r.d.store.load()
	if err == nil || !strings.Contains(err.Error(), `networks "y": holds the record of "x"`) {
		t.Errorf("load: %v", err)
	}
	if err := r.d.healthy(t.Context()); err == nil {
		t.Error("a damaged state is healthy")
	}
}

func TestConfigFile(t *testing.T) {
	good := `
logLevel: debug
idleExit: 10m
limits: {tcpFlows: 100, newFlows: 5.5}
networks:
  - name: web
    subnets: [10.1.0.0/24, "fd01::/64"]
    gateways: ["fd01::9"]
    mtu: 9000
    hostServices: [{name: db, target: "127.0.0.1:5432"}]
    allow: [169.254.169.254/32]
  - name: ranges
    internal: true
    sets: [[{subnet: 10.2.0.0/24, rangeStart: 10.2.0.10, rangeEnd: 10.2.0.20}]]
`
	f, err := parseFile([]byte(good))
	if err != nil {
		t.Fatal(err)
	}
	if f.LogLevel.String() != "DEBUG" || time.Duration(f.IdleExit) != 10*time.Minute || f.Limits.limits().TCPFlows != 100 {
		t.Errorf("read as %+v", f)
	}
	cfg := testConfig(t)
	cfg.File, cfg.IdleExit = f, -1
	r := start(t, cfg)
	web, err := r.Network(t.Context(), "web")
	if err != nil {
		t.Fatal(err)
	}
	if web.Source != control.SourceConfig || web.MTU != 9000 || web.Gateways[0].String() != "10.1.0.1/24" || web.Gateways[1].String() != "fd01::9/64" {
		t.Errorf("network of the file: %+v", web)
	}
	wantCode(t, r.RemoveNetwork(t.Context(), "web"), control.CodeConflict)
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	// Without the file, and with another definition.
	cfg.File = &File{Networks: []NetworkConfig{{Name: "ranges", Subnets: []netip.Prefix{netip.MustParsePrefix("10.3.0.0/24")}}}}
	r = start(t, cfg)
	list, err := r.Networks(t.Context())
	if err != nil || len(list) != 1 || list[0].Name != "ranges" || list[0].Gateways[0].String() != "10.3.0.1/24" || list[0].Internal {
		t.Errorf("after a change of the file: %+v, %v", list, err)
	}
}

func TestBadConfigFiles(t *testing.T) {
	for text, want := range map[string]string{
		"netwroks: []":                     `unknown field "netwroks"; did you mean "networks"?`,
		"networks: [{name: a, subnet: x}]": `unknown field "subnet"; did you mean "subnets"?`,
		"idleExit: 10":                     "duration 10",
		"idleExit: -5m":                    "negative",
		"idleExit: 5m\nidleExit: 6m":       "idleExit",
		"logLevel: loud":                   "loud",
		"networks: [{name: a}]":            `network "a": subnets are missing`,
		"networks: [{name: a, subnets: [10.1.0.0/24], gateways: [10.2.0.1]}]":              "gateway 10.2.0.1 is in none",
		"networks: [{name: a, subnets: [10.1.0.0/24]}, {name: a, subnets: [10.2.0.0/24]}]": "defined twice",
		"networks: [{name: a, subnets: [10.1.0.0/24], sets: [[{subnet: 10.1.0.0/24}]]}]":   "exclude",
		"limits: {tcpFlows: many}": "limits.tcpFlows",
		"[":                        "yaml",
	} {
		if _, err := parseFile([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %v, want %q", text, err, want)
		}
	}
	if f, err := parseFile(nil); err != nil || len(f.Networks) != 0 {
		t.Errorf("empty file: %+v, %v", f, err)
	}
	if _, err := LoadFile("/does/not/exist"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing file: %v", err)
	}
	cfg := testConfig(t)
	cfg.File = &File{Networks: []NetworkConfig{
		{Name: "a", Subnets: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}},
		{Name: "b", Subnets: []netip.Prefix{netip.MustParsePrefix("10.1.2.0/24")}},
	}}
	d, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "networks a (10.1.0.0/16) and b (10.1.2.0/24) overlap") {
		t.Errorf("overlapping networks: %v", err)
	}
}

func TestIdleDaemonExits(t *testing.T) {
	cfg := testConfig(t)
	cfg.IdleExit = 50 * time.Millisecond
	d, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Run(t.Context()); err != nil {
		t.Errorf("Run: %v", err)
	}
	if _, err := os.Lstat(cfg.Socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("socket is left: %v", err)
	}
}

func TestStatusAndMetricsAndHealth(t *testing.T) {
	r := start(t, testConfig(t))
	if _, err := r.CreateNetwork(t.Context(), control.CreateNetworkRequest{Name: "net", Subnets: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24")}}); err != nil {
		t.Fatal(err)
	}
	st, err := r.Status(t.Context(), "net")
	if err != nil || !st.Ready || st.PID != os.Getpid() || st.Networks != 1 || st.OpenFiles == 0 || st.FileLimit < st.OpenFiles {
		t.Errorf("status %+v, %v", st, err)
	}
	plain := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", r.Socket)
	}}}
	get := func(path string) string {
		resp, err := plain.Get("http://usernet" + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Errorf("GET %s: %s, %v\n%s", path, resp.Status, err, body)
		}
		return string(body)
	}
	metrics := get("/metrics")
	for _, want := range []string{
		`usernet_build_info{goversion="go`, `usernet_links{network="net",state="attached"} 0`, `usernet_flows{network="net"} 0`,
		`usernet_forward_bytes_total{direction="toContainer",network="net"} 0`, `usernet_ipam_addresses{network="net",state="free"} 253`,
		`usernet_limit_drops_total{network="net",resource="dials"} 0`, "usernet_open_fds ", "go_goroutines ", "process_resident_memory_bytes ",
	} {
		if !strings.Contains(metrics, want) {
			t.Errorf("metrics lack %q", want)
		}
	}
	if got := get("/healthz"); got != "ok\n" {
		t.Errorf("healthz %q", got)
	}
	if got := get("/v1/networks"); !strings.Contains(got, `"gateways":["10.1.0.1/24"]`) {
		t.Errorf("networks %q", got)
	}
}

// TestHostAddressesReachTheSwitches: what the watch reports is in every
// switch, in those of later networks too.
func TestHostAddressesAreFollowed(t *testing.T) {
	r := start(t, testConfig(t))
	nstest.WaitFor(t, patience, func() bool {
		r.d.mu.Lock()
		defer r.d.mu.Unlock()
		return r.d.hostKnown
	})
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	r.d.mu.Lock()
	defer r.d.mu.Unlock()
	if len(r.d.hostAddrs) < len(addrs) {
		t.Errorf("the watch reported %v, the host has %v", r.d.hostAddrs, addrs)
	}
}

func TestReadyIsNotified(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	r := start(t, testConfig(t))
	read := func() string {
		if err := l.SetReadDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 200)
		n, err := l.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		return string(b[:n])
	}
	if got := read(); !strings.HasPrefix(got, "READY=1\n") {
		t.Errorf("notified %q", got)
	}
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	if got := read(); got != "STOPPING=1" {
		t.Errorf("notified %q", got)
	}
}

func TestStateDirOpenToOthersIsRefused(t *testing.T) {
	cfg := testConfig(t)
	if err := os.MkdirAll(cfg.StateDir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(cfg.StateDir, 0o777); err != nil {
		t.Fatal(err)
	}
	d, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Run(context.Background()); err == nil || !strings.Contains(err.Error(), "mode 0777") {
		t.Errorf("Run: %v", err)
	}
}
